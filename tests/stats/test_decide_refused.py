"""Samples that no verdict is given on."""

from dataclasses import replace

import pytest
from bench_samples import made
from judged_samples import edited

from kdcompile.core.errors import KDError
from kdcompile.stats.latency_test import compare

ONE = {"runs": 1}


@pytest.mark.parametrize("paired", [True, False])
def test_nothing_undisturbed_is_refused(paired):
    a, b = (made(**ONE, seed=seed, disturbed=range(10)) for seed in (1, 2))
    with pytest.raises(KDError) as raised:
        compare(a, b, paired=paired)
    assert raised.value.code == "samples-empty"
    assert "30 disturbed" in raised.value.message


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.0])
def test_what_is_no_latency_is_refused(value, side, paired):
    sides = [made(**ONE, seed=1), made(**ONE, seed=2)]
    sides[side] = edited(
        sides[side], lambda b: replace(b, ms=(*b.ms[:-1], value)), process=1, block=3
    )
    with pytest.raises(KDError) as raised:
        compare(*sides, paired=paired)
    assert raised.value.code == "samples-invalid"
    assert raised.value.where == "run 1, build 1, process 2, block 4"
    assert str(value) in raised.value.message


def test_an_empty_block_is_refused():
    a = edited(made(**ONE), lambda b: replace(b, ms=()))
    with pytest.raises(KDError) as raised:
        compare(a, made(**ONE), paired=False)
    assert raised.value.code == "samples-invalid"


@pytest.mark.parametrize(
    "shape",
    [{"runs": 2}, {"runs": 1, "processes": 2}, {"runs": 1, "blocks": 9}],
    ids=["runs", "processes", "blocks"],
)
def test_other_trees_are_no_pairs(shape):
    with pytest.raises(KDError) as raised:
        compare(made(**shape, seed=1), made(**ONE, seed=2), paired=True)
    assert raised.value.code == "samples-unpaired"
    assert "against" in raised.value.where
    compare(made(**shape, seed=1), made(**ONE, seed=2), paired=False)


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.0, float("nan")])
def test_a_margin_is_a_share(margin):
    with pytest.raises(KDError, match="margin") as raised:
        compare(made(**ONE), made(**ONE), paired=True, margin=margin)
    assert raised.value.code == "margin-invalid"


@pytest.mark.parametrize("level", [0.0, 0.5, float("nan")])
def test_a_level_is_a_chance(level):
    with pytest.raises(KDError) as raised:
        compare(made(**ONE), made(**ONE), paired=True, level=level)
    assert raised.value.code == "level-invalid"
