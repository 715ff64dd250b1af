"""The board's numpy rules are the gates' own: same bounds, same verdicts, same inputs."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

import kdcompile.remote.kit as kit_module
from kdcompile.backends import choose
from kdcompile.config.gates import fraction
from kdcompile.data.preprocess import Preprocess
from kdcompile.gates.accuracy import AccuracyGate
from kdcompile.stats.alternating import PairedTimes, ratio_interval
from kdcompile.stats.bootstrap import MIN_IMAGES
from kdcompile.stats.noninferiority import compare
from kdcompile.tasks.agreement import decibels, powers, relative_error
from kdcompile.tasks.metric import METRICS
from kdcompile.tasks.task import find_task

KIT = Path(kit_module.__file__).parent / "kit"
TOLERANCE = {"rel": 1e-9, "abs": 1e-9}


@pytest.fixture(scope="module")
def scripts():
    """The kit's `judging` and `pack` as modules."""
    sys.path.insert(0, str(KIT))
    try:
        yield importlib.import_module("judging"), importlib.import_module("pack")
    finally:
        sys.path.remove(str(KIT))
        for name in ("judging", "pack", "stop"):
            sys.modules.pop(name, None)


def at_home(settings, task, true, teacher, student, seed):
    """Verdict and bounds of the accuracy gate of `verify`."""
    errors = [task.errors(predicted, true) for predicted in (teacher, student)]
    found = compare(
        METRICS[settings.metric], *errors, margin=fraction(settings.margin),
        max_increase=fraction(settings.max_increase), seed=seed,
    )  # fmt: skip
    ends = (None if end is None or not np.isfinite(end) else end for end in (found.low, found.high))
    return found.verdict, *ends


def random_case(rng, kind):
    count = int(rng.integers(2, 60))
    if kind == "classification":
        true = rng.integers(0, 4, count).astype(float)
        teacher, student = (np.where(rng.random(count) < p, true, 4.0) for p in rng.random(2))
        return true, teacher, student
    true = rng.uniform(0, 500, count)
    teacher = true + rng.normal(0, 20, count)
    student = teacher + rng.normal(rng.uniform(-2, 3), rng.uniform(0.1, 8), count)
    return true, teacher, student


@pytest.mark.parametrize(
    ("kind", "metric"),
    [("counting", "mae"), ("counting", "rmse"), ("regression", "rmse"), ("classification", "top1")],
)
def test_accuracy_is_judged_as_at_home(scripts, kind, metric):
    judging, _ = scripts
    rng, seen = np.random.default_rng(len(metric)), set()
    for seed in range(10 if kind == "classification" else 6):
        true, teacher, student = random_case(rng, kind)
        limits = {
            "max_increase": f"{rng.uniform(0, 20):.2f}%",
            "margin": f"{rng.uniform(1, 30):g}%",
        }
        settings = AccuracyGate(metric=metric, **limits)
        verdict, low, high = at_home(settings, find_task(kind), true, teacher, student, seed)
        gate = settings.model_dump(mode="json")
        found = judging.judge_accuracy(gate, kind, true, teacher, student, seed)
        assert found["verdict"] == verdict
        if low is None:
            assert (found["low"], found["high"]) == (None, None)
        else:
            assert (found["low"], found["high"]) == pytest.approx((low, high), **TOLERANCE)
        seen.add(verdict)
    assert len(seen) > 1


@pytest.mark.parametrize(("kind", "metric"), [("counting", "mae"), ("classification", "top1")])
def test_extreme_cases_are_judged_as_at_home(scripts, kind, metric):
    judging, _ = scripts
    settings, task = AccuracyGate(metric=metric), find_task(kind)
    gate, true = settings.model_dump(mode="json"), np.array([1.0, 2, 0, 3] * 2)
    others = [true, true + 1, np.zeros(8), true + np.eye(8)[2], true + np.eye(8)[5]]
    for teacher in others:
        for student in others:
            verdict, low, high = at_home(settings, task, true, teacher, student, 0)
            found = judging.judge_accuracy(gate, kind, true, teacher, student, 0)
            assert found["verdict"] == verdict
            for key, wanted in (("low", low), ("high", high)):
                assert found[key] == (wanted and pytest.approx(wanted, **TOLERANCE))
    few = 1 if kind == "classification" else MIN_IMAGES - 1
    some = (true[:few], true[:few], true[:few])
    assert judging.judge_accuracy(gate, kind, *some, 0)["verdict"] == "inconclusive"
    assert at_home(settings, task, *some, 0) == ("inconclusive", None, None)


def test_a_metric_of_maps_is_stood_for_by_the_count(scripts):
    judging, _ = scripts
    true = np.arange(12.0)
    found, wanted = (
        judging.judge_accuracy(
            AccuracyGate(metric=name).model_dump(mode="json"), "counting", true, true + 1, true, 0
        )
        for name in ("game2", "mae")
    )
    assert found == wanted


def test_speed_up_is_judged_as_at_home(scripts):
    judging, _ = scripts
    rng = np.random.default_rng(2)
    a, b = rng.uniform(5, 9, 12), rng.uniform(1, 2, 12)
    expected = ratio_interval(PairedTimes(a, b, 10), seed=4)
    for least, verdict in ((1.0, "passed"), (expected[0], "inconclusive"), (99, "failed")):
        found = judging.judge_speedup(least, a, b, 4)
        assert (found["ratio"], found["low"], found["high"]) == pytest.approx(expected, rel=1e-12)
        assert found["verdict"] == verdict


def test_parity_is_measured_as_at_home(scripts):
    judging, _ = scripts
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
def test_preprocessing_is_the_packages_bit_for_bit(scripts, preprocess):
    _, pack = scripts
    rng = np.random.default_rng(0)
    for shape in ((16, 24), (7, 9), (16, 5)):
        pixels = rng.integers(0, 256, (*shape, preprocess.channels), dtype=np.uint8)
        found = pack.prepare(pixels, preprocess.to_json())
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        assert found.tobytes() == preprocess(pixels).tobytes()
        assert found.shape == preprocess(pixels).shape


@pytest.mark.parametrize("kind", ["counting", "classification", "regression"])
def test_predictions_and_errors_are_the_tasks(scripts, kind):
    judging, _ = scripts
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


def test_choice_prefers_precision_where_speed_is_level(scripts):
    judging, _ = scripts
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
