"""What limits mean of errors that are relative to the teacher, and intervals of a set's metric."""

import numpy as np
import pytest
from scipy import stats

from kdcompile.core.errors import KDError
from kdcompile.gates.accuracy import AccuracyGate, accuracy, never_wrong, of_no_error
from kdcompile.gates.registry import find_gate
from kdcompile.stats import bootstrap
from kdcompile.stats.bootstrap import ratio_interval
from kdcompile.stats.drawn import bounds_of, drawn_bounds, drawn_interval
from kdcompile.stats.noninferiority import bounds, compare, limits_text, rate_decrease_interval
from kdcompile.tasks.generic import DISAGREEMENT, RELATIVE, Generic, ScoredSet
from kdcompile.tasks.metric import MAE, Metric
from kdcompile.tasks.over_set import DRAWS, OverSet


def _mean(values, axis=-1):
    return np.mean(values, axis=axis)


DRAWN = Metric("set_score", _mean, whole=True, draws=DRAWS)


def test_the_text_of_an_absolute_limit_names_no_teacher():
    threshold = find_gate("accuracy").threshold(
        AccuracyGate(max_increase="30%", margin="60%"), Generic()
    )
    assert threshold == "rel_error at most 0.3, 95 % bound at most 0.6"
    assert limits_text(RELATIVE, "30%", "60%", "the earlier bundle's") == (
        "rel_error at most 0.3 over the earlier bundle's, "
        "95 % bound at most 0.6 over the earlier bundle's"
    )
    assert "over the teacher's" in limits_text(MAE, "30%", "60%", "the teacher's")


@pytest.mark.parametrize(
    ("error", "verdict"), [(0.05, "passed"), (0.0999, "passed"), (0.1001, "failed")]
)
def test_a_limit_of_10_percent_allows_an_error_of_0_1_whatever_the_teachers_is(error, verdict):
    errors = np.full(20, error)
    for teacher in (np.zeros(20), np.full(20, 1e-7)):
        found = compare(RELATIVE, teacher, errors, margin=0.15, max_increase=0.1, seed=0)
        assert found.verdict == verdict


def test_the_bound_of_an_absolute_error_is_that_of_the_paired_difference():
    random = np.random.default_rng(0)
    shared = random.exponential(1, 40)
    low, high = bounds(RELATIVE, shared, shared + 0.1 + 1e-3 * random.standard_normal(40), 0)
    assert low == pytest.approx(0.1, abs=2e-3)
    assert high == pytest.approx(0.1, abs=2e-3)


def test_disagreement_on_one_position_each_has_the_interval_of_a_rate():
    errors = np.array([1.0] * 3 + [0.0] * 27)
    found = bounds(DISAGREEMENT, np.zeros(30), errors, 0)
    assert found == rate_decrease_interval(np.zeros(30), errors, 0.9)
    none = bounds(DISAGREEMENT, np.zeros(30), np.zeros(30), 0)
    assert 0.05 < none[1] < 0.15  # 30 samples are no proof that none ever differs
    assert bounds(RELATIVE, np.zeros(30), np.zeros(30), 0)[1] == 0


def test_disagreement_on_many_positions_is_a_mean_of_shares():
    errors = np.random.default_rng(0).uniform(0.04, 0.06, 30)
    low, high = bounds(DISAGREEMENT, np.zeros(30), errors, 0)
    assert 0.045 < low < errors.mean() < high < 0.055


def test_a_costly_metric_is_computed_as_often_as_is_said():
    rows = []

    def statistic(values, axis=-1):
        found = np.atleast_2d(values)
        rows.append(len(found))
        return np.mean(values, axis=axis)

    values = np.random.default_rng(0).exponential(1, 50)
    drawn_interval((values,), statistic, confidence=0.9, seed=0, draws=99)
    assert sum(rows) == 100


def test_each_end_of_a_drawn_interval_is_the_wider_of_two():
    values = np.random.default_rng(1).exponential(1, 12)
    low, high = drawn_interval((values,), _mean, confidence=0.9, seed=0, draws=999)
    found = np.array([values[p].mean() for p in bootstrap.resamples(12, 999, 0)])
    reach = bootstrap.t_quantile(0.95, 11) * found.std(ddof=1) * np.sqrt(12 / 11)
    assert low == pytest.approx(values.mean() - reach)
    bias = stats.norm.ppf((found < values.mean()).mean())
    corrected = np.quantile(found, stats.norm.cdf(2 * bias + stats.norm.ppf(0.95)))
    assert corrected > values.mean() + reach  # of a skewed sample
    assert high == pytest.approx(corrected, rel=0.01)


def test_a_drawn_interval_of_a_mean_is_near_that_of_the_formula():
    random = np.random.default_rng(2)
    reference = random.exponential(1, 60)
    errors = reference * random.uniform(0.9, 1.3, 60)
    found = drawn_bounds(DRAWN, reference, errors, 0)
    wanted = [r * reference.mean() - reference.mean()
              for r in ratio_interval(reference, errors, confidence=0.9, seed=0)]  # fmt: skip
    assert found == pytest.approx(wanted, abs=0.02)


def test_the_bound_of_a_set_is_wrong_about_as_often_as_is_said():
    """Of a root mean square over the set, of networks that differ by a known factor."""
    metric = Metric("set_score", lambda v, axis=-1: np.sqrt(np.mean(v * v, axis=axis)), draws=199)
    random, wrong, trials = np.random.default_rng(0), 0, 300
    for trial in range(trials):
        reference = random.standard_normal(25)
        errors = 1.2 * (0.8 * reference + 0.6 * random.standard_normal(25))
        _, high = drawn_bounds(metric, np.abs(reference), np.abs(errors), trial)
        # the true ratio of the two is 1.2
        wrong += high < 0.2 * metric(reference)
    assert wrong / trials < 0.09


def test_resamples_without_a_number_prove_nothing():
    def sometimes(values, axis=-1):
        found = np.mean(values, axis=axis)
        return np.where(found > 0.5, np.nan, found)

    values = np.random.default_rng(0).uniform(0, 0.9, 20)
    metric = Metric("set_score", sometimes, draws=199)
    assert values.mean() < 0.5
    limits = {"margin": 0.5, "max_increase": 0.5, "find": bounds_of(metric)}
    found = compare(metric, values, values, seed=0, **limits)
    assert found.verdict == "inconclusive"


def test_a_set_that_no_resample_changes_has_no_interval():
    same = np.full(12, 3.0)
    assert drawn_interval((same,), _mean, confidence=0.9, seed=0, draws=9) == (3.0, 3.0)
    assert drawn_bounds(DRAWN, np.zeros(12), np.zeros(12), 0) == (0.0, 0.0)


def test_the_function_sees_the_outputs_of_the_samples_together():
    seen = []

    def score(outputs, samples):
        seen.append((len(outputs), len(samples)))
        return float(sum(o["a"][0] - s["y"] for o, s in zip(outputs, samples, strict=True)))

    over = OverSet(score, "score.py:score")
    places = [over.keep({"a": np.array([i + 2.0])}, {"y": i}) for i in range(5)]
    assert over.metric(places) == 10
    assert over.metric.of(np.array([places, places[::-1]]), axis=-1).tolist() == [10, 10]
    assert over.metric.of(np.array([places[:1], places[4:]]), axis=-1).tolist() == [2, 2]
    assert seen[0] == (5, 5)


@pytest.mark.parametrize("value", [-0.5, "none", None])
def test_what_is_no_error_of_a_set_is_refused(value):
    over = OverSet(lambda outputs, samples: value, "score.py:score")
    places = [over.keep({}, {})]
    with pytest.raises(KDError) as caught:
        over.metric(places)
    assert caught.value.code == "task-metric"
    assert "lists of arrays by name" in caught.value.fix


def test_whether_images_can_decide_is_asked_without_the_function():
    def score(outputs, samples):
        raise AssertionError("there are no outputs yet")

    metric = ScoredSet(score, "score.py:score").judged
    assert never_wrong(metric, 8, "15%", "5%", 0).verdict == "passed"
    assert never_wrong(metric, 7, "15%", "5%", 0).verdict == "inconclusive"
    assert accuracy.threshold(AccuracyGate(), ScoredSet(score, "x")).startswith("set_score at most")


def test_a_metric_of_a_set_without_errors_is_a_mean_of_images():
    right = of_no_error(Metric("map", _mean, higher=True, most=1.0, draws=DRAWS))
    assert right.of(np.zeros((2, 3))).tolist() == [1.0, 1.0]
    assert right.of(np.array([[0.0, 1.0], [0.0, 0.0]])).tolist() == [0.5, 1.0]
    assert (right.most, right.draws, right.absolute) == (np.inf, None, True)
    assert of_no_error(DRAWN).of(np.zeros(3)) == 0.0
    assert of_no_error(MAE) is MAE, "one of images stays as it is"
