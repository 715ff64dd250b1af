"""benchmarks/gates_simulated.py: its noises, its rules, its record, and how it goes on."""

import importlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
NAMES = ("gates_noise", "gates_record", "gates_simulated")


@pytest.fixture(scope="module")
def scripts():
    """The scripts by name, without their folder on the path after."""
    sys.path.insert(0, str(FOLDER))
    try:
        found = {name: importlib.import_module(name) for name in NAMES}
    finally:
        sys.path.remove(str(FOLDER))
    yield found
    for name in NAMES:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["ORIN_NX_MAXQ", "AGX_ORIN_MAXQ"])
def test_mixtures_have_the_percentiles_of_the_logs(scripts, name):
    noise = scripts["gates_noise"]
    points = getattr(noise, name)
    course = noise.mixture(points)
    random = np.random.default_rng(0)
    times = np.concatenate([course(random, 5000) for _ in range(40)])
    shares, values = np.array([p for p in points if 0.5 <= p[0] <= 0.99]).T
    middle = dict(points)[0.5]
    np.testing.assert_allclose(np.quantile(times, shares) * middle, values, rtol=0.02)
    if name == "ORIN_NX_MAXQ":
        assert times.mean() * middle == pytest.approx(1.420, rel=0.01)  # which is not fitted
    slow = times > np.quantile(times, 0.9)
    assert np.mean(slow[1:][slow[:-1]]) > 0.15  # they come in clusters: 0.1 would be alone


def test_sides_that_take_turns_share_their_course(scripts):
    noise = scripts["gates_noise"]
    size = 2 * noise.BLOCKS * noise.INFERENCES
    draw = noise.in_turns(lambda _, count: 1 + np.arange(count) / count, (0.0, 0.0), processes=1)
    (((ours,),),), (((theirs,),),) = draw(np.random.default_rng(0))
    assert sorted(np.concatenate([ours, theirs]).ravel()) == list(1 + np.arange(size) / size)
    assert ours.shape == (noise.BLOCKS, noise.INFERENCES)
    assert list(ours[:, 0] < theirs[:, 0])[:4] == [True, False, True, False]


@pytest.mark.parametrize("name", ["cpu-small", "cpu-large", "cpu-contended"])
def test_traces_here_are_drawn_from(scripts, name):
    noise = scripts["gates_noise"]
    ours, theirs = noise.recorded(name)(np.random.default_rng(0))
    assert [len(run[0]) for run in (ours[0], theirs[0])] == [noise.PROCESSES] * 2
    assert all(a.shape == b.shape for a, b in zip(ours[0][0], theirs[0][0], strict=True))
    assert noise.samples(ours, "x", 2.0).runs[0].builds[0].processes


def test_other_rules_are_what_they_say(scripts):
    rules = scripts["gates_simulated"].RULES
    steady = np.ones(100)
    spiked = np.where(np.arange(100) < 2, 9.0, 1.0)
    assert [says(1.06 * steady, steady) for says in rules.values()] == [True, True]
    assert [says(1.04 * steady, steady) for says in rules.values()] == [False, False]
    assert [says(spiked, steady) for says in rules.values()] == [True, False]


def test_simulation_counts_verdicts_and_goes_on(scripts, tmp_path, monkeypatch, capsys):
    sim, noise = scripts["gates_simulated"], scripts["gates_noise"]
    monkeypatch.setattr(sim, "CHANGES", (0.0, 0.03, 0.05))
    draw = noise.in_turns(noise.drift, (0.001, 0.006))
    kinds = {"drift": draw}
    monkeypatch.setattr(sim, "in_turns", lambda: kinds)
    monkeypatch.setattr(sim, "others", lambda: {"alone": (noise.apart(noise.drift, 0, 0), False)})
    monkeypatch.setattr(sim, "TAILS", (0.0, 0.3))
    output = tmp_path / "out.json"
    first = sim.run(output, 12, 3)
    row = first["in_turns"]["drift"]
    assert row["verdicts"]["+0.000"].get("regressed", 0) == 0
    assert row["verdicts"]["+0.050"] == {"regressed": 12}
    assert first["summary"]["comparisons"] == 12
    assert first["slower_tail"]["0"] == {"equivalent": 3}
    assert {found.split("+")[0] for found in first["slower_tail"]["0.3"]} == {"p90"}
    assert first["others"]["alone"]["comparisons"] == 3

    kinds["bursts"] = noise.in_turns(noise.bursts, (0.001, 0.006))
    asked = []
    real = sim.simulate
    monkeypatch.setattr(sim, "simulate", lambda d, c, **k: asked.append(d) or real(d, c, **k))
    second = sim.run(output, 12, 3)
    assert asked == [kinds["bursts"]]
    assert second["in_turns"]["drift"] == row
    assert json.loads(output.read_text()) == second
    table = sim.table(second)
    assert "| bursts | 12 | 0 |" in table
    assert len(table.splitlines()) == 5
    assert "drift" in capsys.readouterr().err

    sim.run(output, 2, 1)  # other settings: nothing is kept
    assert len(asked) == 4


def test_bursts_take_turns_after_a_warm_up(scripts):
    record = scripts["gates_record"]
    asked = []

    def burst(name, count):
        asked.append((name, count))
        return [2.0] * count

    sides = record.in_turns(burst)
    turns = asked[-2 * record.BURSTS :]
    assert "".join(name for name, _ in turns[:8]) == "abbaabba"
    assert {count for _, count in turns} == {25}  # 50 ms of them
    assert [len(side) for side in sides.values()] == [record.BURSTS] * 2
    assert sides["a"][0] == [2000] * 25
    warm = asked[: -2 * record.BURSTS]
    assert sum(2.0 * count for _, count in warm) >= record.WARMUP_MS


def test_a_recording_is_read_back(scripts, tmp_path, monkeypatch):
    record, noise = scripts["gates_record"], scripts["gates_noise"]
    shape = [[round(1000 + i) for i in range(5)] for _ in range(noise.BLOCKS)]
    monkeypatch.setattr(
        record, "one_process", lambda *a: ({"a": shape, "b": shape}, {"cpu": "test"})
    )
    monkeypatch.setattr(record, "busy", lambda wanted: nullcontext())
    pauses = []
    monkeypatch.setattr(record.time, "sleep", pauses.append)
    record.record(tmp_path / "t.json", "small", 3, runs=2, pause_s=7.0)
    assert pauses == [7.0]
    whole = json.loads((tmp_path / "t.json").read_text())
    assert [p["run"] for p in whole["processes"]] == [0, 0, 0, 1, 1, 1]
    assert [p["planted"] for p in whole["processes"]] == [False, True] * 3
    monkeypatch.setattr(noise, "HERE", tmp_path)
    ours, theirs = noise.recorded_runs("t", 1)(np.random.default_rng(0))
    assert (len(ours), len(theirs), len(ours[0][0])) == (1, 1, 3)


def test_the_network_runs_and_copies_are_timed(scripts, tmp_path, monkeypatch):
    record = scripts["gates_record"]
    path = record.network(2, 8, tmp_path / "n.onnx")
    monkeypatch.setattr(record, "BURSTS", 2)
    monkeypatch.setattr(record, "WARMUP_MS", 0.1)
    monkeypatch.setattr(record, "BURST_MS", 0.1)
    pytest.importorskip("onnxruntime")
    sides = record.local_process(path, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    assert set(sides) == {"a", "b"}
    assert all(us >= 0 for side in sides.values() for burst in side for us in burst)
