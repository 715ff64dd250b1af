"""Every part of the photos: one that is ruined fails, few photos or many parts prove nothing."""

import numpy as np
import pytest
from pydantic import ValidationError

from kdcompile.config.spec import Spec
from kdcompile.gates.subgroups import StrataGate, strata
from kdcompile.stats import bootstrap
from kdcompile.tasks.task import find_task


def crowd(n, factors, seed=0):
    """True counts, the teacher's and the student's, whose error is larger by a factor in thirds."""
    rng = np.random.default_rng(seed)
    true = np.sort(rng.uniform(10, 1000, n))
    errors = rng.normal(0, 20, n)
    scaled = errors * np.repeat(factors, -(-n // 3))[:n]
    return true, true + errors, true + scaled


def test_a_student_as_good_everywhere_passes(make_context):
    result = strata(StrataGate(margin="20%"), make_context("counting", *crowd(90, (1, 1.02, 0.9))))
    assert result.verdict == "passed"
    assert "in each of 3 parts" in result.reason
    assert len(result.measurements) == 3
    assert all(m.n == 30 and m.low <= m.value <= m.high for m in result.measurements)


def test_a_good_mean_does_not_hide_a_ruined_third(make_context):
    context = make_context("counting", *crowd(180, (0.5, 0.6, 2.5)))
    result = strata(StrataGate(margin="30%"), context)
    assert result.verdict == "failed"
    assert result.reason.startswith("1 of 3 parts failed: ")
    assert "in the worst of 3 parts" in result.observed


def test_a_part_with_too_few_photos_is_inconclusive(make_context):
    context = make_context("counting", *crowd(21, (1, 1, 1)))
    result = strata(StrataGate(margin="500%"), context)
    assert result.verdict == "inconclusive"
    assert "7 images, too few" in result.reason


def test_classes_are_parts_by_their_names(make_context):
    true = np.repeat([0.0, 1], 200)
    student = true.copy()
    student[200:260] = 0
    context = make_context("classification", true, true, student, classes=("cat", "dog"))
    result = strata(StrataGate(margin="10%"), context)
    assert result.verdict == "failed"
    assert "class dog" in result.observed
    assert "class cat" not in result.reason
    assert result.threshold == "top1 of every part within 10 points of the teacher's, at 95 %"


def test_a_class_without_a_photo_is_not_proven(make_context):
    true = np.repeat([0.0, 1], 200)
    context = make_context("classification", true, true, true, classes=("cat", "dog", "owl"))
    result = strata(StrataGate(margin="10%"), context)
    assert result.verdict == "inconclusive"
    assert result.reason.startswith("no test image of owl")


def test_many_looks_do_not_fail_an_equal_student(monkeypatch, make_context):
    """All parts exactly at the margin: a single look fails 5 %, three uncorrected ones 14 %."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 499)
    failed, draws = 0, 60
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        true = np.repeat([10.0, 20, 30], 25)
        teacher = np.where(rng.random(75) < 0.5, 1, -1) * 10.0  # of a metric that is known
        student = rng.normal(0, 11 / np.sqrt(2 / np.pi), 75)  # worse by 10 %, on average
        context = make_context("counting", true, true + teacher, true + student)
        failed += strata(StrataGate(margin="10%"), context).verdict == "failed"
    assert failed / draws <= 0.1


def test_without_maps_game_is_skipped_and_with_them_judged(make_context):
    true, teacher, student = crowd(60, (1, 1, 1))
    gate = StrataGate(metric="game2", margin="20%")
    result = strata(gate, make_context("counting", true, teacher, student))
    assert (result.verdict, result.measurements) == ("skipped", ())
    assert "--via" in result.reason
    maps = {who: np.abs(v - true)[:, None] + [0.0, 1, 2] for who, v in
            (("teacher", teacher), ("student", student))}  # fmt: skip
    result = strata(gate, make_context("counting", true, teacher, student, maps=maps))
    assert result.verdict == "passed"


@pytest.mark.parametrize("metric", ["mae", "rmse"])
def test_few_images_are_not_an_error(make_context, metric):
    result = strata(StrataGate(metric=metric), make_context("regression", *crowd(2, (1, 1, 1))))
    assert result.verdict == "inconclusive"
    assert "in the worst of 2 parts" in result.observed


@pytest.mark.parametrize("metric", ["mae", "top1", "maee"])
@pytest.mark.parametrize("gate", ["accuracy", "strata", "previous"])
@pytest.mark.parametrize("kind", ["counting", "classification"])
def test_a_spec_may_name_the_metrics_of_its_task_and_no_other(gate, kind, metric):
    spec = {
        "task": {"kind": kind}, "gates": {gate: {"metric": metric}},
        "teacher": {"model": "m.py:f", "weights": "w.pt"},
        "data": {"format": "imagefolder", "root": "."},
    }  # fmt: skip
    if metric == find_task(kind).metric.name:
        assert getattr(Spec.model_validate(spec).gates, gate).metric == metric
        return
    with pytest.raises(ValidationError, match=f"gates.{gate}.metric '{metric}' is not one of"):
        Spec.model_validate(spec)
