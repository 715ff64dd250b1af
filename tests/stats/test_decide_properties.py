"""What holds of any verdict."""

import numpy as np
import pytest
from bench_samples import made
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_samples import reordered, scaled

from kdcompile.stats.latency_test import compare

SHAPES = st.fixed_dictionaries(
    {
        "runs": st.integers(1, 3),
        "processes": st.integers(1, 3),
        "blocks": st.integers(1, 9),
        "inferences": st.integers(1, 8),
        "noise": st.sampled_from([0.0, 0.001, 0.05, 1.0]),
    }
)
SETTINGS = settings(max_examples=30)


@SETTINGS
@given(shape=SHAPES, paired=st.booleans(), factor=st.floats(0.001, 1000), ratio=st.floats(0.5, 2))
def test_the_unit_of_time_does_not_matter(shape, paired, factor, ratio):
    a, b = made(ratio, **shape, seed=1), made(**shape, seed=2)
    first = compare(a, b, paired=paired)
    second = compare(scaled(a, factor), scaled(b, factor), paired=paired)
    for x, y in zip(first.ratios, second.ratios, strict=True):
        assert (x.value, x.low, x.high) == pytest.approx((y.value, y.low, y.high), rel=1e-6)


@SETTINGS
@given(shape=SHAPES, paired=st.booleans(), ratio=st.floats(0.5, 2))
def test_swapped_sides_give_the_inverse(shape, paired, ratio):
    a, b = made(ratio, **shape, seed=1), made(**shape, seed=2)
    there, back = compare(a, b, paired=paired), compare(b, a, paired=paired)
    for x, y in zip(there.ratios, back.ratios, strict=True):
        assert (x.value, x.low, x.high) == pytest.approx((1 / y.value, 1 / y.high, 1 / y.low))


@SETTINGS
@given(shape=SHAPES, factor=st.floats(0.5, 2))
def test_a_factor_of_one_side_is_a_factor_of_the_ratio(shape, factor):
    a, b = made(**shape, seed=1), made(**shape, seed=2)
    first = compare(a, b, paired=True).ratios[0]
    second = compare(scaled(a, factor), b, paired=True).ratios[0]
    assert second.value == pytest.approx(factor * first.value)


@SETTINGS
@given(shape=SHAPES, paired=st.booleans(), order=st.randoms(use_true_random=False))
def test_the_order_of_blocks_in_a_process_does_not_move_the_ratio(shape, paired, order):
    sides = [made(1.01, **shape, seed=1), made(**shape, seed=2)]
    picks = list(range(shape["blocks"]))
    order.shuffle(picks)
    turned = [reordered(side, picks) for side in sides]
    before, after = compare(*sides, paired=paired), compare(*turned, paired=paired)
    for x, y in zip(before.ratios, after.ratios, strict=True):
        assert np.log(y.value) == pytest.approx(np.log(x.value), abs=1e-9)
    if shape["runs"] == shape["processes"] == 1:
        assert before.ratios[0].value == pytest.approx(after.ratios[0].value)


@SETTINGS
@given(shape=SHAPES, paired=st.booleans(), seed=st.integers(0, 99))
def test_the_same_seed_gives_the_same_verdict(shape, paired, seed):
    a, b = made(1.02, **shape, seed=1), made(**shape, seed=2)
    assert compare(a, b, paired=paired, seed=seed) == compare(a, b, paired=paired, seed=seed)
