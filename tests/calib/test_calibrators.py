"""Calibrators against brute force, and the streaming histogram against numpy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdcompile.calib.histogram import BINS, Histogram, merged
from kdcompile.calib.observers import divergences, entropy, find_calibrator, minmax, mse, percentile
from kdcompile.core import plugins
from kdcompile.core.errors import KDError

EVERY = {name: find_calibrator(name) for name in plugins.names("calibrators")}
MODERATE = st.floats(-1e6, 1e6, width=32).map(lambda x: 0.0 if abs(x) < 1e-30 else x)
FLOATS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


def histogram(*parts: np.ndarray) -> Histogram:
    result = Histogram()
    for part in parts:
        result.add(part.astype(np.float32))
    return result


def half_normal(n: int = 200_000, seed: int = 0) -> np.ndarray:
    return np.maximum(np.random.default_rng(seed).standard_normal(n), 0).astype(np.float32)


@given(st.lists(arrays(np.float32, st.integers(1, 60), elements=FLOATS), min_size=1, max_size=5))
@settings(max_examples=60)
def test_streaming_equals_one_histogram(parts: list[np.ndarray]) -> None:
    found = histogram(*parts)
    everything = np.concatenate(parts)
    assert found.total == found.counts.sum() == everything.size
    assert (found.minimum, found.maximum) == (everything.min(), everything.max())
    assert found.amax == np.abs(everything).max()
    if not found.span:
        return
    assert found.amax <= found.span
    edges = np.linspace(0, found.span, BINS + 1)
    expected, _ = np.histogram(np.abs(everything.astype(np.float64)), edges)
    # a value on an edge may fall to either side in float32
    assert np.abs(np.cumsum(found.counts) - np.cumsum(expected)).max() <= np.sum(
        np.abs(np.abs(everything[:, None]) - edges[None]).min(1) < 1e-6 * found.span
    )


def test_growth_keeps_at_least_half_of_the_bins() -> None:
    found = histogram(*(np.array([1.0 * 1.7**k], np.float32) for k in range(20)))
    assert BINS // 2 <= np.flatnonzero(found.counts)[-1] < BINS


def test_the_span_is_a_power_of_two_over_every_value() -> None:
    for amax, span in ((1.0, 2.0), (0.99, 1.0), (6.0, 8.0), (3e38, 2.0**127)):
        found = histogram(np.array([amax, 0.5 * amax]))
        assert found.span == span
        assert found.counts.sum() == 2


@given(
    st.lists(arrays(np.float32, st.integers(1, 60), elements=MODERATE), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=60)
def test_merging_equals_one_histogram_in_any_order(parts: list[np.ndarray], random: Any) -> None:
    whole = histogram(*parts)
    random.shuffle(parts)
    half = len(parts) // 2
    both = merged([histogram(*parts[:half]), histogram(*parts[half:])])
    assert (both.total, both.span) == (whole.total, whole.span)
    assert (both.minimum, both.maximum) == (whole.minimum, whole.maximum)
    np.testing.assert_array_equal(both.counts, whole.counts)


def test_merging_several_times_over() -> None:
    a, b = half_normal(500), 3 * half_normal(700, 1)
    found = histogram(a)
    found.merge(histogram(b), 2)
    found.merge(histogram(9 * b), 0)
    found.merge(Histogram())
    expected = histogram(a, b, b)
    assert (found.total, found.maximum) == (expected.total, expected.maximum)
    np.testing.assert_array_equal(found.counts, expected.counts)


def test_chunks_do_not_lose_values() -> None:
    values = np.random.default_rng(0).standard_normal(400_003).astype(np.float32)
    assert histogram(values).counts.sum() == values.size


@given(arrays(np.float32, st.integers(1, 300), elements=FLOATS))
@settings(max_examples=60)
def test_minmax_is_the_largest_magnitude(values: np.ndarray) -> None:
    found = histogram(values)
    assert minmax(found) == np.abs(values).max()
    assert found.clipped(minmax(found)) == 0.0


@given(arrays(np.float32, st.integers(1, 300), elements=FLOATS))
@settings(max_examples=60)
def test_every_calibrator_stays_within_the_data(values: np.ndarray) -> None:
    found = histogram(values)
    for choose in EVERY.values():
        amax = choose(found)
        assert 0 <= amax <= found.amax
        assert amax > 0 or not found.span
        assert 0 <= found.clipped(amax) <= 1


def test_percentile_against_sorting() -> None:
    values = half_normal()
    found = histogram(values)
    amax = percentile(found)
    exact = np.sort(values)[int(np.ceil(0.9999 * values.size)) - 1]
    assert exact <= amax <= exact + 2 * found.width
    assert found.clipped(amax) == np.mean(values > amax) <= 1e-4


def test_mse_against_a_scan_of_the_values() -> None:
    values = np.concatenate([half_normal(50_000), np.array([12.0], np.float32)])
    found = histogram(values)

    def error(amax: float) -> float:
        scale = amax / 127
        return float(np.square(values - np.rint(values / scale).clip(0, 127) * scale).sum())

    scan = [error(amax) for amax in np.linspace(0.5, 12, 400)]
    assert error(mse(found)) <= min(scan) * 1.02


def brute_divergence(counts: list[float], edge: int) -> float:
    """KL(P || Q) with loops, one level at a time."""
    inside, total, kept = counts[:edge], sum(counts), sum(counts[:edge])
    p = list(inside)
    p[-1] += total - kept
    q = [0.0] * edge
    for level in range(128):
        start, stop = level * edge // 128, (level + 1) * edge // 128
        used = [i for i in range(start, stop) if inside[i] > 0]
        for i in used:
            q[i] = sum(inside[start:stop]) / len(used)
    loss = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0 and b == 0:
            return float("inf")
        if a > 0:
            loss += a / total * np.log((a / total) / (b / kept))
    return loss


@given(arrays(np.int64, 200, elements=st.integers(0, 5)), st.integers(128, 200))
@settings(max_examples=60)
def test_divergence_against_loops(counts: np.ndarray, edge: int) -> None:
    if counts[:edge].sum() == 0:
        return
    expected = brute_divergence(counts.tolist(), edge)
    (found,) = divergences(counts.astype(float), [edge])
    assert found == pytest.approx(expected, abs=1e-12)


def test_entropy_is_the_least_divergence() -> None:
    found = histogram(half_normal(20_000))
    counts = found.counts[: np.flatnonzero(found.counts)[-1] + 1].astype(float)
    counts[0] = 0
    tried = [*range(128, len(counts), 8), len(counts)]
    losses = [brute_divergence(counts.tolist(), e) for e in tried[::40]]
    best = round(entropy(found) / found.width)
    assert divergences(counts, [min(best, len(counts))])[0] <= min(losses) + 1e-12


@pytest.mark.parametrize("name", ["entropy", "percentile", "mse"])
def test_an_outlier_is_clipped(name: str) -> None:
    values = np.concatenate([half_normal(), np.array([60.0], np.float32)])
    found = histogram(values)
    amax = EVERY[name](found)
    assert 1.0 < amax < 45.0
    assert found.clipped(amax) > 0


def test_an_8_bit_image_is_not_clipped() -> None:
    """255 values among 3000 bins: the divergence says how they fall there, not what is lost."""
    rng = np.random.default_rng(0)
    pixels = (255 * rng.random(50_000) ** 4).astype(np.uint8)
    for mean, std in ((0.09, 0.155), (0.5, 0.25), (0.485, 0.229)):
        found = histogram((pixels / np.float32(255) - np.float32(mean)) / np.float32(std))
        assert entropy(found) == found.amax


def test_an_outlier_is_kept_by_minmax() -> None:
    assert minmax(histogram(np.array([0.1, -60.0]))) == 60.0


@pytest.mark.parametrize("choose", EVERY.values(), ids=EVERY.keys())
def test_zeros_give_zero(choose: object) -> None:
    assert choose(histogram(np.zeros(10))) == 0.0


def test_zeros_before_and_after_values() -> None:
    found = histogram(np.zeros(10), np.array([1.0, 2.0]), np.zeros(5))
    assert (found.total, found.counts[0], found.amax) == (17, 15, 2.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_is_refused(bad: float) -> None:
    with pytest.raises(KDError) as error:
        histogram(np.array([1.0, bad, 2.0]))
    assert error.value.code == "calib-nonfinite"
