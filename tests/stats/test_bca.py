"""The BCa interval in numpy is SciPy's, draw for draw."""

import numpy as np
import pytest
from scipy import stats

from kdcompile.stats.bootstrap import RESAMPLES, bca
from kdcompile.tasks.metric import MAE, RMSE


def contrast(r, s, axis):
    r, s = np.mean(r, axis=axis), np.mean(s, axis=axis)
    return (s - r) / (s + r)


@pytest.mark.parametrize("n", [8, 45, 230])
@pytest.mark.parametrize(("statistic", "sides"), [(MAE.of, 1), (RMSE.of, 1), (contrast, 2)])
def test_it_is_scipys(statistic, sides, n):
    rng = np.random.default_rng(n)
    samples = tuple(np.abs(rng.normal(size=n)) ** 3 for _ in range(sides))
    wanted = stats.bootstrap(
        samples, statistic, paired=True, vectorized=True, n_resamples=RESAMPLES,
        confidence_level=0.9, method="BCa", rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert bca(samples, statistic, confidence=0.9, seed=5) == pytest.approx(tuple(wanted), rel=1e-9)


def test_there_is_no_interval_where_every_resample_lies_on_one_side():
    samples = (np.array([0.0, 1.0, 1.0, 1.0]),)
    assert np.isnan(bca(samples, lambda x, axis: x.max(axis=axis), confidence=0.9, seed=0)).all()
