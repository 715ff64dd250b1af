import math

import pytest

from kdcompile.backends.choose import Limits, choose, judge

LIMITS = Limits("mae", 10.0, 20.0)


def candidates(*rows):
    return [judge(p, ms, "predicted", value, 40.0, LIMITS) for p, ms, value in rows]


@pytest.mark.parametrize(
    ("rows", "precision"),
    [
        ((("fp32", 3, 9), ("fp16", 2, 9), ("int8", 1, 9)), "int8"),
        ((("fp32", 3, 9), ("fp16", 2, 9), ("int8", 1, 10.1)), "fp16"),
        ((("fp32", 3, 10), ("fp16", 2, 11), ("int8", 1, 12)), "fp32"),  # the limit itself passes
        ((("fp32", 1, 9), ("fp16", 2, 8), ("int8", 3, 7)), "fp32"),  # int8 that does not pay
        ((("fp32", 3, 12), ("fp16", 2, 11), ("int8", 1, 13)), "fp16"),  # none passes
        ((("fp32", 3, 12), ("fp16", 2, math.nan), ("int8", 1, math.inf)), "fp32"),
        ((("fp32", 1, 9), ("int8", 1, 8)), "int8"),  # a tie goes to the more accurate
        ((("fp32", 1, math.nan),), "fp32"),
    ],
)
def test_auto(rows, precision):
    assert choose(candidates(*rows)).precision == precision


def test_none_passing_is_said():
    choice = choose(candidates(("fp32", 3, 12), ("int8", 1, 13)))
    assert choice.why.startswith("no precision passes; fp32 is the most accurate")


def test_nan_never_passes():
    assert not candidates(("fp32", 1, math.nan))[0].passed


def test_asked_is_obeyed_and_called_so():
    choice = choose(candidates(("fp32", 3, 9), ("int8", 1, 99)), "int8")
    assert (choice.precision, choice.basis) == ("int8", "asked")
    assert "over the limit" in choice.why


@pytest.mark.parametrize(("evidence", "basis"), [("host", "measured"), ("predicted", "predicted")])
def test_basis(evidence, basis):
    assert choose([judge("fp32", 1, evidence, 1, 40.0, LIMITS)]).basis == basis


def test_the_losers_are_explained():
    rows = ("fp32", 3, 9), ("fp16", 0.238, 9), ("int8", 0.246, 9)
    assert "int8 0.246 ms is slower than fp16 0.238 ms" in choose(candidates(*rows)).why


@pytest.mark.parametrize("sqnr", [19.9, -200.0, math.nan])
def test_densities_that_differ_do_not_pass(sqnr):
    found = judge("int8", 1, "predicted", 1.0, sqnr, LIMITS)
    assert not found.passed
    assert "within the limit" in found.why
    assert "dB of 20" in found.why
