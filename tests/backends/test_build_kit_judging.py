"""The board judges by the gates' own rules: same bounds, same verdicts, same inputs."""

import numpy as np
import pytest
from played_board import GATES, KIT, SEED, WORKER, host_report, record, rows

from kdcompile.backends import choose
from kdcompile.core.errors import KDError
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates.accuracy import AccuracyGate
from kdcompile.gates.from_board import judge_board
from kdcompile.remote.agent import judging, pack
from kdcompile.stats.bootstrap import MIN_IMAGES
from kdcompile.tasks.agreement import decibels, powers, relative_error
from kdcompile.tasks.task import find_task


def judged_at_home(predicted, blocks, kit=KIT):
    """The gates of a report that a board's numbers were merged into, by name."""
    value = record("0" * 64)
    chosen = next(c for c in value["candidates"] if c["precision"] == value["chosen"])
    chosen["predictions"] = predicted.tolist()
    value["latency"]["graph"][value["chosen"]]["blocks"] = blocks.tolist()
    report, _ = judge_board(host_report(), kit, GATES, value, "device.json")
    return {gate.name: gate for gate in report.gates}


def test_the_board_and_home_judge_alike():
    lists = [np.array([row[key] for row in rows()]) for key in ("true", "teacher")]
    teacher_blocks = record("")["latency"]["graph"]["teacher_fp16"]["blocks"]
    accuracy, least = GATES["accuracy"], GATES["speedup"]["min"]
    rng, seen = np.random.default_rng(1), set()
    wrong = lists[1] - lists[0]
    for errors, ms in ((1.001 * wrong, 1.0), (rng.permutation(wrong), 2.0), (2 * wrong, 3.0)):
        student, blocks = lists[0] + errors, rng.normal(ms, 0.1, 12)
        home = judged_at_home(student, blocks)
        judged = judging.judge_accuracy(accuracy, "counting", *lists, student, SEED)
        ratio = judging.speedup(teacher_blocks, blocks, SEED)
        for name, verdict, *interval in (
            ("accuracy", *(judged[key] for key in ("verdict", "low", "high"))),
            ("speedup", judging.decided(ratio, "min", least)[0], ratio.low, ratio.high),
        ):
            gate = home[f"{name}@device"]
            (number,) = gate.measurements
            assert verdict == gate.verdict
            assert interval == [number.low, number.high]
            seen.add((name, gate.verdict))
    assert len(seen) == 6, "each gate with each verdict"


def test_a_bundle_of_before_the_agent_was_one_file_is_judged():
    student, blocks = np.array([row["teacher"] for row in rows()]), np.full(12, 1.0)
    old = {**KIT, "files": {"worker.py": WORKER}}
    assert judged_at_home(student, blocks, old)["accuracy@device"].verdict == "passed"
    with pytest.raises(KDError, match=r"worker\.py there is not the kit's"):
        judged_at_home(student, blocks, {**KIT, "files": {"worker.py": "0" * 64}})


@pytest.mark.parametrize(("kind", "metric"), [("counting", "mae"), ("classification", "top1")])
def test_too_few_photos_decide_nothing(kind, metric):
    gate = AccuracyGate(metric=metric).model_dump(mode="json")
    for few in (0, 1 if kind == "classification" else MIN_IMAGES - 1):
        some = np.arange(float(few))
        found = judging.judge_accuracy(gate, kind, some, some, some, 0)
        assert found["verdict"] == "inconclusive"


def test_a_metric_of_maps_is_stood_for_by_the_count():
    true = np.arange(12.0)
    found, wanted = (
        judging.judge_accuracy(
            AccuracyGate(metric=name).model_dump(mode="json"), "counting", true, true + 1, true, 0
        )
        for name in ("game2", "mae")
    )
    assert found == wanted


def test_parity_is_measured_as_at_home():
    rng = np.random.default_rng(3)
    want = [rng.normal(size=(1, 1, 4, 6)).astype(np.float32) for _ in range(3)]
    have = [w + rng.normal(0, 0.01, w.shape).astype(np.float32) for w in want]
    found = judging.agreement(have, want)
    sums = np.array([powers(w, h) for w, h in zip(want, have, strict=True)]).sum(axis=0)
    assert found["sqnr_db"] == pytest.approx(decibels(*sums), abs=1e-9)
    largest = max(relative_error(w, h) for w, h in zip(want, have, strict=True))
    assert found["max_rel_error"] == pytest.approx(largest, rel=1e-9)
    assert judging.agreement(want, want) == {"max_rel_error": 0.0, "sqnr_db": 200.0}
    broken = [np.full_like(w, np.nan) for w in want]
    assert judging.agreement(broken, want) == {"max_rel_error": 1e30, "sqnr_db": -200.0}


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (32, 32), (64, 96)),
        Preprocess(1, (0.4,), (0.3,), (16, 24), (16, 24)),
    ],
)
def test_preprocessing_is_the_packages_bit_for_bit(preprocess):
    rng = np.random.default_rng(0)
    for shape in ((16, 24), (7, 9), (16, 5)):
        pixels = rng.integers(0, 256, (*shape, preprocess.channels), dtype=np.uint8)
        found = pack.prepare(pixels, preprocess.to_json())
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert found.tobytes() == preprocess(pixels).tobytes()
        assert found.shape == preprocess(pixels).shape


@pytest.mark.parametrize("kind", ["counting", "classification", "regression"])
def test_predictions_and_errors_are_the_tasks(kind):
    task, rng = find_task(kind), np.random.default_rng(1)
    shape = {"counting": (1, 1, 5, 7), "classification": (1, 4), "regression": (1, 1)}[kind]
    outputs = [rng.normal(size=shape).astype(np.float32) for _ in range(6)]
    found = np.array([judging.prediction(output, kind) for output in outputs])
    wanted = np.array([task.predictions(output)[0] for output in outputs])
    assert found.tolist() == wanted.tolist()
    true = rng.integers(0, 4, 6).astype(float)
    assert judging.errors_of(found, true, kind).tolist() == task.errors(wanted, true).tolist()
    if kind == "classification":
        assert judging.prediction(np.float32([[1, np.nan]]), kind) == -1


def test_choice_prefers_precision_where_speed_is_level():
    name, why = judging.choose([("int8", 0.246), ("fp16", 0.238), ("fp32", 0.9)], [("fp8", 0.2)])
    assert name == "fp16"
    assert "int8 0.246 ms is slower than fp16 0.238 ms" in why
    assert "fp8 0.2 ms does not pass" in why
    name, why = judging.choose([("int8", 0.237), ("fp16", 0.240)], [])
    assert name == "fp16"
    assert why.startswith("fp16 is as fast as any that passes")
    assert "int8 0.237 ms is within 2 % of fp16 0.24 ms, which is more precise" in why
    assert judging.choose([("int8", 0.20), ("fp16", 0.24)], [])[0] == "int8"
    assert (judging.ORDER, judging.TIE) == (choose.ORDER, 1 + choose.TIE)  # as at home
