"""The rule of non-inferiority: what is refused, how often it is wrong, and any metric."""

from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from kdcompile.core.errors import KDError
from kdcompile.stats import bootstrap
from kdcompile.stats.bootstrap import MIN_IMAGES, interval, jackknife_reach, t_quantile
from kdcompile.stats.noninferiority import compare
from kdcompile.tasks.metric import GAMES, MAE, RMSE, TOP1


@pytest.mark.parametrize(
    ("reference", "errors", "code"),
    [
        ([], [], "accuracy-images"),
        ([1.0, 2], [1.0], "accuracy-unpaired"),
        ([1.0, np.nan], [1.0, 2], "accuracy-nonfinite"),
        ([1.0, 2], [1.0, np.inf], "accuracy-nonfinite"),
    ],
)
@pytest.mark.parametrize("metric", [MAE, RMSE, TOP1, GAMES[1]], ids=lambda metric: metric.name)
def test_errors_that_no_verdict_can_rest_on_are_refused(metric, reference, errors, code):
    with pytest.raises(KDError) as caught:
        compare(metric, np.array(reference), np.array(errors), margin=0.1, seed=0)
    assert caught.value.code == code
    assert caught.value.fix


def test_the_quantile_of_the_kit_is_students():
    for freedom in (MIN_IMAGES - 1, 9, 30, 181):
        for share in (0.95, 0.975):
            wanted = stats.t.ppf(share, freedom)
            assert t_quantile(share, freedom) == pytest.approx(wanted, rel=5e-4)


@pytest.mark.parametrize(("z", "terms"), [(1, (0.5, 0.25, 0.0625)), (2, (2.5, 3.0625, 2.859375))])
def test_each_term_of_students_quantile_is_that_of_abramowitz_and_stegun(z, terms):
    share = NormalDist().cdf(z)
    for freedom in (1, 4):
        wanted = z + sum(term / freedom**power for power, term in enumerate(terms, 1))
        assert t_quantile(share, freedom) == pytest.approx(wanted, rel=1e-9)


def test_the_jackknife_of_a_mean_is_students_interval():
    sample = np.random.default_rng(0).exponential(2, 12)
    reach = jackknife_reach((sample,), np.mean, 0.9)
    assert reach == pytest.approx(stats.t.ppf(0.95, 11) * stats.sem(sample), rel=1e-3)


@pytest.mark.parametrize("n", [8, 15])
def test_the_interval_is_no_narrower_than_either(n):
    sample = np.random.default_rng(n).exponential(2, n)
    low, high = interval((sample,), np.mean, confidence=0.9, seed=0)
    reach = jackknife_reach((sample,), np.mean, 0.9)
    bca = stats.bootstrap(
        (sample,), np.mean, confidence_level=0.9, rng=np.random.default_rng(0)
    ).confidence_interval
    assert low <= min(sample.mean() - reach, bca.low + 1e-9)
    assert high >= max(sample.mean() + reach, bca.high - 1e-9)


@pytest.mark.parametrize("metric", [MAE, RMSE], ids=lambda metric: metric.name)
@pytest.mark.parametrize("spread", [0.0, 0.9])
@pytest.mark.parametrize("n", [MIN_IMAGES, 30])
def test_a_student_at_the_margin_passes_as_rarely_as_promised(monkeypatch, metric, spread, n):
    """Its errors are 1.15 times the teacher's in size, of photos alike and of a crowd's sizes."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 299)
    rng, passed, draws = np.random.default_rng(1), 0, 300
    for seed in range(draws):
        scale = np.exp(rng.normal(0, spread, n))
        teacher = rng.standard_normal(n)
        student = 1.15 * (0.95 * teacher + np.sqrt(1 - 0.95**2) * rng.standard_normal(n))
        found = compare(metric, scale * teacher, scale * student, margin=0.15, seed=seed)
        passed += found.verdict == "passed"
    assert passed / draws <= 0.08  # 5 % and chance


def test_a_rate_needs_two_photos_and_an_error_eight():
    same = np.zeros(MIN_IMAGES)
    assert compare(TOP1, same[:1], same[:1], margin=1.0, seed=0).verdict == "inconclusive"
    assert compare(TOP1, same[:4], same[:4], margin=1.0, seed=0).verdict == "passed"
    few = compare(MAE, same[1:], same[1:], margin=1.0, seed=0)
    assert (few.verdict, few.high) == ("inconclusive", None)
    assert compare(MAE, same, same, margin=0.0, seed=0).verdict == "passed"


def test_a_point_over_its_limit_fails_however_few_photos():
    teacher, student = np.array([1.0, 1, 1]), np.array([2.0, 2, 2])
    found = compare(MAE, teacher, student, margin=9.0, max_increase=0.5, seed=0)
    assert found.verdict == "failed"
    assert compare(MAE, teacher, student, margin=9.0, seed=0).verdict == "inconclusive"


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:The BCa confidence interval")
@pytest.mark.parametrize("sizes", [(1e160, 1e160), (1.0, 1e160), (1e160, 1.0)], ids=str)
@pytest.mark.parametrize("student", [1.0, 9.0])
def test_errors_too_large_to_compute_with_prove_nothing(sizes, student):
    """Their squares are no numbers, and neither is the bound: a student 9 times as bad included."""
    errors = 1 + np.random.default_rng(0).random(40)
    teacher, own = sizes[0] * errors, sizes[1] * student * errors[::-1]
    assert compare(RMSE, teacher, own, margin=0.15, seed=0).verdict == "inconclusive"
