"""Errors with records: picking, metrics of sums, and paired intervals."""

import numpy as np
import pytest

from kdcompile.stats.bootstrap import interval, resamples
from kdcompile.stats.drawn import drawn_bounds
from kdcompile.stats.noninferiority import compare
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.records import Recorded, over_sums, summed, value_of, weights_of

RANDOM = np.random.default_rng(0)
ROWS = np.concatenate([RANDOM.random((12, 1)), RANDOM.integers(1, 50, (12, 2))], axis=1)


def _share(sums):
    return sums[..., 0] / sums.sum(-1)


SHARE = Metric("share", over_sums(_share), higher=True, most=1.0, draws=499, records=True)


def test_the_metric_reads_the_records_of_whatever_images_are_picked() -> None:
    errors = Recorded.of(ROWS)
    assert errors.tolist() == ROWS[:, 0].tolist()
    assert SHARE(errors) == pytest.approx(ROWS[:, 1].sum() / ROWS[:, 1:].sum())
    mask = np.arange(12) % 3 == 0
    assert SHARE(errors[mask]) == pytest.approx(ROWS[mask, 1].sum() / ROWS[mask, 1:].sum())
    picks = resamples(12, 40, seed=1)
    by_hand = [ROWS[own, 1].sum() / ROWS[own, 1:].sum() for own in picks]
    assert SHARE.of(errors[picks], axis=-1) == pytest.approx(by_hand)
    assert SHARE.of(errors[picks], axis=1) == pytest.approx(by_hand)
    assert SHARE(errors[mask][[1, 1]]) == pytest.approx(ROWS[3, 1] / ROWS[3, 1:].sum())


def test_what_is_computed_from_them_is_plain() -> None:
    errors = Recorded.of(ROWS)
    for plain in (np.abs(errors), errors - 1, errors * 2, np.sqrt(errors), -errors):
        assert type(plain) is np.ndarray
    assert errors[3] == ROWS[3, 0]
    assert np.mean(errors) == pytest.approx(ROWS[:, 0].mean())


def test_without_records_a_metric_of_them_is_not_known() -> None:
    assert np.isnan(SHARE(Recorded.of([0.5, 0.25])))
    assert value_of(0.5) == 0.5
    assert value_of(ROWS[2]) == ROWS[2, 0]


def test_sums_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    picks = resamples(12, 10, seed=2)
    whole = summed(ROWS, picks)
    assert whole == pytest.approx(ROWS[picks].sum(1))
    monkeypatch.setattr("kdcompile.tasks.records.BATCH_VALUES", 30)
    assert (summed(ROWS, picks) == whole).all()
    assert weights_of(np.array([[0, 0, 2], [1, 1, 1]]), 3).tolist() == [[2, 0, 1], [0, 3, 0]]


def test_a_pair_is_resampled_together_and_higher_is_better() -> None:
    same = Recorded.of(ROWS)
    assert drawn_bounds(SHARE, same, same, seed=0) == (0.0, 0.0)
    worse = ROWS.copy()
    worse[:, 2] += 0.2 * worse[:, 1]
    worse[:, 1] *= 0.8
    low, high = drawn_bounds(SHARE, same, Recorded.of(worse), seed=0)
    decrease = SHARE(same) - SHARE(Recorded.of(worse))
    assert decrease == pytest.approx(0.2 * SHARE(same))
    # every image lost a fifth of its share: pairing leaves nothing to vary
    assert (low, high) == pytest.approx((decrease, decrease), rel=1e-6)
    found = compare(SHARE, same, Recorded.of(worse), margin=0.1, seed=0, find=drawn_bounds)
    assert found.verdict == "failed"
    found = compare(SHARE, same, Recorded.of(worse), margin=0.21, seed=0, find=drawn_bounds)
    assert found.verdict == "passed"


def test_an_interval_leaves_out_records_image_by_image() -> None:
    low, high = interval((Recorded.of(ROWS),), SHARE.of, confidence=0.9, seed=0)
    assert low < SHARE(Recorded.of(ROWS)) < high
