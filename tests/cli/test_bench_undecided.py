"""What `bench` and `compare` say to type where they decide nothing: it is typed as it stands."""

import numpy as np
import pytest
from bench_line import UNIT_MS, BenchLine
from benching import GPU


@pytest.fixture
def line(monkeypatch, capsys, tmp_path):
    made = BenchLine(monkeypatch, capsys, tmp_path)
    made.network("net", 1.0)
    made.network("other", 1.0, seed=1)
    return made


@pytest.fixture
def kept(line):
    assert line("bench", "net.onnx", "--save", "b.json")[0] == 0
    return line


SHORT = ("--seconds", "3", "--processes", "2", "--mode", "copies=both")


def _noisy(line, noise):
    """Latencies that vary so much, and their processes a quarter of it."""
    line.noise, line.of_process = noise, {}

    def ms(network, process, number):
        if (network, process) not in line.of_process:
            line.of_process[network, process] = line.rng.normal(0, noise / 4)
        spread = line.of_process[network, process] + line.rng.normal(0, noise)
        return line.speeds[network] * float(np.exp(spread))

    line.scene.ms = ms


def test_after_a_plain_comparison(line):
    _noisy(line, 0.03)
    assert line("compare", "net.onnx", "other.onnx", *SHORT)[0] == 5
    assert "--until-decided" in line.out
    for option in ("--mode copies=both", "--processes"):
        assert option in line.out
    assert line.typed() == 0
    assert "equivalent" in line.out


def test_after_few_samples(kept):
    assert kept("bench", "other.onnx", "--baseline", "b.json", "--samples", "10")[0] == 5
    assert kept.typed() == 0
    assert "equivalent" in kept.out


def test_one_look_that_is_cut_off_asks_for_a_longer_limit(line):
    _noisy(line, 0.02)
    words = ("compare", "net.onnx", "other.onnx", *SHORT, "--until-decided", "--limit", "2")
    assert line(*words)[0] == 5
    assert "looks, each" not in line.out  # one look
    assert line.typed() == 0


def test_seconds_hold_for_each_look_in_turns(line):
    """The first look comes when a plain run of so many seconds would end."""
    _noisy(line, 0.1)
    seen = []
    line.undecided(9)
    from kdcompile.latency import compare

    real = compare._compare

    def look(*arguments):
        seen.append(line.scene.clock())
        return real(*arguments)

    line.monkeypatch.setattr(compare, "_compare", look)
    start = line.scene.clock()
    words = ("compare", "net.onnx", "other.onnx", "--seconds", "6", "--until-decided")
    assert line(*words, "--limit", "1000")[0] == 5
    assert seen[0] - start < 8
    assert seen[-1] - start < 16 * 8


def test_builds_that_differ_ask_for_more_builds(line):
    line.scene.about = GPU

    def ms(network, process, number):
        effect = np.random.default_rng(list(network.encode())).normal(0, 0.008)
        return UNIT_MS * float(np.exp(effect + line.rng.normal(0, 0.003)))

    line.scene.ms = ms
    words = ("compare", "net.onnx", "other.onnx", "--backend", "tensorrt", "--builds", "2")
    for _ in range(8):  # an engine's name, and so its speed, is random
        code = line(*words)[0]
        if code == 5:
            break
    assert code == 5
    assert "in more builds, would decide" in line.out
    advice = line.out.split("to decide: ")[1]
    assert "--builds 2" not in advice
    assert "--until-decided" not in advice
    for _ in range(4):
        if line.typed() != 5:
            break
    assert "inconclusive: " not in line.out


def _gone(line):
    (line.folder / "net.onnx").rename(line.folder / "moved.onnx")
    line.speeds["moved"] = line.speeds["net"]


def test_from_samples_more_runs_of_the_candidate(kept):
    _gone(kept)
    kept.noise = 0.004
    found = kept("bench", "other.onnx", "--baseline", "b.json", "--processes", "1")
    for _ in range(3):
        if found[0] != 5 or "to decide: kdcompile" not in kept.out:
            break
        found = (kept.typed(),)
    assert found[0] == 0


def test_from_samples_that_no_run_decides_the_reference_is_asked_for(kept):
    _gone(kept)
    kept.scene.ms = lambda network, process, number: (
        UNIT_MS * 1.004 * float(np.exp(kept.rng.normal(0, 0.003)))
    )
    words = ("bench", "other.onnx", "--baseline", "b.json", "--margin", "0.8%")
    assert kept(*words)[0] == 5
    assert "--reference FILE" in kept.out
    code, found = kept.json(*words, "--reference", "moved.onnx", "--until-decided")
    assert (code, found["paired"]) == (0, True)


def test_a_baseline_whose_artifact_is_there_is_better_run_beside(kept):
    kept.noise = 0.02
    kept.network("other", 1.02, seed=1)
    assert kept("compare", "b.json", "other.onnx", "--seconds", "50")[0] == 5
    assert "to decide: kdcompile bench other.onnx --baseline b.json --seconds 50\n" in kept.out
    assert kept.typed() in (0, 3)


def test_two_files_are_measured_in_turns_where_both_artifacts_are_there(kept):
    words = ("--mode", "copies=both", "--streams", "2")
    for name, ms in (("net", 1.0), ("other", 1.006)):
        kept.network(name, ms, seed=len(name))
        assert kept("bench", f"{name}.onnx", "--save", f"{name}.json", *words)[0] == 0
    assert kept("compare", "net.json", "other.json", "--margin", "1.5%")[0] == 5
    advice = kept.out.split("to decide: ")[1]
    assert advice.startswith("kdcompile compare net.onnx other.onnx ")
    assert "--mode copies=both" in advice
    assert "--streams 2" in advice
    assert kept.typed() in (0, 3)
    (kept.folder / "net.onnx").unlink()
    assert kept("compare", "net.json", "other.json", "--margin", "1.5%")[0] == 5
    assert "save" in kept.out.split("to decide: ")[1]
    assert "until-decided" not in kept.out


def test_the_report_for_machines_has_it_too(line):
    _noisy(line, 0.03)
    code, found = line.json("compare", "net.onnx", "other.onnx", *SHORT)
    assert code == 5
    assert found["to_decide"].startswith("kdcompile compare net.onnx other.onnx ")
    assert "--json" in found["to_decide"]
    line.scene.ms = line._ms
    line.noise = 0.003
    assert line.json("compare", "net.onnx", "other.onnx")[1]["to_decide"] is None
