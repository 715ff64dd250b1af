"""Energy and memory beside a latency: told of each side where known, and no part of the verdict."""

import pytest
from bench_line import BenchLine

from kdcompile.core.errors import KDError


@pytest.fixture
def line(monkeypatch, capsys, tmp_path):
    made = BenchLine(monkeypatch, capsys, tmp_path)
    made.network("old", 1.0)
    made.network("new", 1.0, seed=1)
    return made


def draws(**watts):
    """The worker's readings of networks by their stem: 500 inferences in 5 s, 2 W while idle."""

    def power(network):
        rails = [{"VDD_IN": 1000.0 * w} for w in (watts[network], 2.0)]
        busy, idle = ([[i / 50, rail] for i in range(250)] for rail in rails)
        return {"source": "INA3221", "unit": "mW", "mode": "device", "graph": False,
                "idle": {"samples": idle},
                "busy": {"samples": busy, "seconds": 5.0, "inferences": 500}}  # fmt: skip

    return power


QUICK = ("--processes", "2", "--seconds", "4")


def test_both_sides_are_told_and_the_verdict_is_the_latencys(line):
    line.scene.power = draws(old=4.0, new=12.0)
    code, _ = line("compare", "old.onnx", "new.onnx", *QUICK)
    assert code == 0  # three times the energy is no slower
    assert (
        "reference: 40 mJ an inference (40 to 40), 20 mJ of it above idle; by INA3221" in line.out
    )
    assert "candidate: 120 mJ an inference (120 to 120), 100 mJ of it above idle" in line.out
    assert "candidate: peak memory 20.97 MB: peak resident growth of the process" in line.out
    code, found = line.json("compare", "old.onnx", "new.onnx", *QUICK)
    assert found["candidate"]["usage"]["energy"]["mj"] == pytest.approx(120.0)
    assert found["reference"]["usage"]["energy"]["source"] == "INA3221"
    assert found["reference"]["usage"]["memory"]["mb"] == pytest.approx(20 * 1.048576)


def test_what_nothing_tells_is_a_reason_in_the_json_and_no_line(line):
    code, found = line.json("bench", "new.onnx", *QUICK)
    assert (code, found["candidate"]["usage"]["energy"]) == (0, {"absent": "no sensor"})
    line("bench", "new.onnx", *QUICK)
    assert "mJ" not in line.out
    assert "peak memory 20.97 MB" in line.out


def test_a_network_that_fails_alone_keeps_its_latency(line):
    line.scene.fails = lambda op, process, number: (
        KDError("cuda-error", "out of memory") if op == "memory" else None
    )
    code, found = line.json("bench", "new.onnx", *QUICK)
    assert code == 0
    assert found["candidate"]["p50_ms"] > 0
    assert found["candidate"]["usage"]["memory"] == {"absent": "out of memory (cuda-error)"}


def test_a_baseline_keeps_what_its_artifact_took(line):
    line.scene.power = draws(old=4.0, new=4.0)
    assert line("bench", "old.onnx", "--save", "base.json", *QUICK)[0] == 0
    opened = len(line.scene.places)
    (line.folder / "old.onnx").unlink()
    line("bench", "new.onnx", "--baseline", "base.json", *QUICK)
    assert "reference: 40 mJ an inference" in line.out
    # read once for each measurement, however many runs it has: 3 runs of 2 processes
    assert opened == 3 * 2 + 1
