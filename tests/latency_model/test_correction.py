"""A device's common error, from a few measurements."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdcompile.latency_model.correction import NOISE, SHARED, TRUST, Correction, log_sd
from kdcompile.latency_model.predict import NINETY, Estimate, Part

RATIO = st.floats(0.05, 20.0)
MS = st.floats(0.01, 1000.0)
BAND = st.floats(1.0, 5.0)


def predicted(ms, band=1.5):
    bounds = {"arithmetic": 0.7 * ms, "memory": 0.2 * ms, "launch": 0.1 * ms}
    parts = tuple(Part(n, "conv", (n,), part, n, True) for n, part in bounds.items())
    return Estimate(ms, ms / band, ms * band, True, "fp16", bounds, parts)


def width(estimate):
    return math.log(estimate.high_ms / estimate.low_ms)


@given(MS, BAND)
def test_without_measurements_nothing_changes(ms, band):
    estimate = predicted(ms, band)
    assert Correction.of([]).apply(estimate) is estimate


def test_one_pair_against_the_closed_form():
    estimate, band = predicted(1.0), math.log(1.5) / NINETY
    correction = Correction.of([(estimate, 1.3)])
    u, own = math.log(1.3) / band, 1 - SHARED + (NOISE / band) ** 2
    shift = SHARED / (SHARED + own) * u
    k = (TRUST + (u - shift) ** 2 / own) / (TRUST + 1)
    total = SHARED * own / (SHARED + own) + (1 - SHARED) * k
    assert correction.shift == pytest.approx(shift)
    assert correction.spread == pytest.approx(math.sqrt(total))
    moved = correction.apply(estimate)
    assert moved.ms == pytest.approx(math.exp(band * shift))
    assert width(moved) == pytest.approx(2 * NINETY * band * math.sqrt(total))
    assert 1.0 < moved.ms < 1.3


@given(st.lists(st.tuples(MS, BAND, RATIO), min_size=1, max_size=6))
def test_every_pair_lies_in_its_own_interval(pairs):
    known = [(predicted(ms, band), ms * ratio) for ms, band, ratio in pairs]
    correction = Correction.of(known)
    for estimate, measured in known:
        moved = correction.apply(estimate)
        assert moved.low_ms * (1 - 1e-9) <= measured <= moved.high_ms * (1 + 1e-9)
        assert moved.low_ms <= moved.ms <= moved.high_ms


@given(st.floats(0.7, 1.4), st.floats(1.3, 3.0))
def test_pairs_that_agree_narrow_and_move_more(ratio, band):
    estimate = predicted(1.0, band)
    other = predicted(5.0, band)
    found = [Correction.of([(estimate, ratio)] * count).apply(other) for count in range(9)]
    widths = [width(e) for e in found]
    assert all(b < a for a, b in pairwise(widths))
    away = [abs(math.log(e.ms / (5.0 * ratio))) for e in found]
    assert all(b <= a + 1e-12 for a, b in pairwise(away))


def test_a_wide_interval_moves_more_than_a_narrow_one():
    correction = Correction.of([(predicted(1.0, 2.0), 1.4)])
    narrow, wide = (correction.apply(predicted(1.0, band)).ms for band in (1.2, 2.5))
    assert 1 < narrow < wide


def test_pairs_that_disagree_widen():
    agree = [(predicted(1.0), 1.2), (predicted(2.0), 2.4), (predicted(3.0), 3.6)]
    disagree = [(predicted(1.0), 0.3), (predicted(2.0), 5.0), (predicted(3.0), 3.0)]
    narrow, wide = (Correction.of(p).apply(predicted(1.0)) for p in (agree, disagree))
    assert width(narrow) < width(predicted(1.0)) < width(wide)


def test_a_pair_that_is_far_off_widens_what_is_not_shared():
    """An interval is widened to hold the farthest pair; what is common stays as it was."""
    pairs = [(predicted(1.0), ratio) for ratio in (1.0, 1.0, 1.0, 4.0)]
    correction = Correction.of(pairs)
    band = math.log(1.5) / NINETY
    far = abs(math.log(4.0) / band - correction.shift)
    assert correction.spread == pytest.approx(far / NINETY)  # that pair sets the interval
    own = 1 - SHARED + (NOISE / band) ** 2
    known = SHARED / (1 + len(pairs) * SHARED / own)
    assert correction.shared * correction.spread**2 == pytest.approx(known)


def test_what_is_shared_falls_as_it_becomes_known():
    one, many = (Correction.of([(predicted(1.0), 1.1)] * n) for n in (1, 8))
    assert SHARED > one.shared > many.shared > 0


def test_parts_and_bounds_move_with_the_latency():
    moved = Correction.of([(predicted(1.0), 1.5)]).apply(predicted(4.0))
    assert sum(moved.bounds.values()) == pytest.approx(moved.ms)
    assert sum(part.ms for part in moved.parts) == pytest.approx(moved.ms)
    assert moved.notes[-1].endswith("from 1 measured on the device")
    assert moved.validated is True
    assert moved.precision == "fp16"


def test_it_crosses_json():
    correction = Correction.of([(predicted(1.0), 1.5)])
    assert Correction(**correction.to_json()) == correction


def test_a_point_estimate_has_the_noise_of_a_measurement():
    assert log_sd(predicted(1.0, 1.0)) == NOISE
