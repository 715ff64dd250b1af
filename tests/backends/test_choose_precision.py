import math

import pytest

from kdcompile.backends.choose import Limits, choose, judge
from kdcompile.tasks.metric import MAE, TOP1

LIMITS = Limits(MAE, 10.0, 20.0)


def candidates(*rows):
    return [judge(p, ms, "predicted", value, 40.0, LIMITS) for p, ms, value in rows]


@pytest.mark.parametrize(
    ("rows", "precision"),
    [
        ((("fp32", 3, 9), ("fp16", 2, 9), ("int8", 1, 9)), "int8"),
        ((("fp32", 3, 9), ("fp16", 2, 9), ("int8", 1, 10.1)), "fp16"),
        ((("fp32", 3, 10), ("fp16", 2, 11), ("int8", 1, 12)), "fp32"),  # the limit itself passes
        ((("fp32", 1, 9), ("fp16", 2, 8), ("int8", 3, 7)), "fp32"),  # int8 that does not pay
        ((("fp32", 3, 12), ("fp16", 2, 11), ("int8", 1, 13)), "fp32"),  # not even fp32 passes
        ((("fp32", 3, 12), ("fp16", 2, math.nan), ("int8", 1, math.inf)), "fp32"),
        ((("fp32", 3, math.nan), ("fp16", 2, 11), ("int8", 1, 12)), "fp32"),  # nor is no number
        ((("fp16", 2, math.nan), ("int8", 1, 12)), "int8"),
        ((("int8", 1, 12), ("fp16", 2, math.nan)), "int8"),
        ((("fp32", 1, 9), ("int8", 1, 8)), "int8"),  # a tie goes to the more accurate
        ((("fp32", 1, math.nan),), "fp32"),
        ((("fp32", 3, 18.046427), ("mixed", 1, 18.046333)), "fp32"),
    ],
)
def test_auto(rows, precision):
    assert choose(candidates(*rows), MAE).precision == precision


def test_none_passing_is_said():
    choice = choose(candidates(("fp32", 3, 12), ("int8", 1, 11)), MAE)
    assert choice.why == (
        "no precision passes; the fp32 student fails by itself: "
        "validation mae 12 is over the limit 10"
    )


def test_where_fp32_is_no_candidate_the_most_accurate_is_chosen():
    choice = choose(candidates(("fp16", 3, 12), ("int8", 1, 11)), MAE)
    assert choice.precision == "int8"
    assert choice.why.startswith("no precision passes; int8 is the most accurate: ")


@pytest.mark.parametrize(("int8", "chosen"), [(11.76, "int8"), (11.77, "fp16"), (12, "fp16")])
def test_where_none_passes_metrics_within_noise_go_to_the_more_precise(int8, chosen):
    """12 is within 2 % of 11.77, and not of 11.76."""
    choice = choose(candidates(("int8", 1, int8), ("fp16", 3, 12)), MAE)
    assert choice.precision == chosen
    assert ("within 2% of the most accurate" in choice.why) == (chosen == "fp16" and int8 < 12)


def test_an_accurate_fp32_that_computes_something_else_is_not_to_blame():
    found = [judge("fp32", 3, "device", 9, 3.0, LIMITS), judge("int8", 1, "device", 11, 9, LIMITS)]
    choice = choose(found, MAE)
    assert choice.why.startswith("no precision passes; fp32 is the most accurate: ")


def test_nan_never_passes():
    assert not candidates(("fp32", 1, math.nan))[0].passed


def test_asked_is_obeyed_and_called_so():
    choice = choose(candidates(("fp32", 3, 9), ("int8", 1, 99)), MAE, "int8")
    assert (choice.precision, choice.basis) == ("int8", "asked")
    assert "over the limit" in choice.why


@pytest.mark.parametrize(("evidence", "basis"), [("host", "measured"), ("predicted", "predicted")])
def test_basis(evidence, basis):
    assert choose([judge("fp32", 1, evidence, 1, 40.0, LIMITS)], MAE).basis == basis


def test_the_losers_are_explained():
    rows = ("fp32", 3, 9), ("fp16", 0.238, 9), ("int8", 0.246, 9)
    assert "int8 0.246 ms is slower than fp16 0.238 ms" in choose(candidates(*rows), MAE).why


def test_measured_times_within_their_noise_go_to_the_more_precise():
    def measured(int8_ms):
        rows = (("fp32", 3.0), ("fp16", 1.0), ("mixed", 0.995), ("int8", int8_ms))
        return choose([judge(p, ms, "device", 9.0, 40.0, LIMITS) for p, ms in rows], MAE)

    assert measured(0.99).precision == "fp16"
    assert "within 2% of the fastest" in measured(0.99).why
    assert measured(0.97).precision == "int8"
    assert "fp16 1 ms is slower than int8 0.97 ms" in measured(0.97).why


def test_outputs_at_the_limit_pass():
    assert judge("int8", 1, "predicted", 1.0, 20.0, LIMITS).passed


@pytest.mark.parametrize("sqnr", [19.9, -200.0, math.nan])
def test_outputs_that_differ_do_not_pass(sqnr):
    found = judge("int8", 1, "predicted", 1.0, sqnr, LIMITS)
    assert not found.passed
    assert "within the limit" in found.why
    assert "dB of 20" in found.why


def test_of_a_rate_more_is_better():
    limits = Limits(TOP1, 0.9, 20.0)
    rows = (("fp32", 3, 0.95), ("fp16", 2, 0.9), ("int8", 1, 0.89))
    found = [judge(p, ms, "predicted", value, 40.0, limits) for p, ms, value in rows]
    assert choose(found, TOP1).precision == "fp16"
    assert found[2].why == "validation top1 89.00% is under the limit 90.00%"
    strict = Limits(TOP1, 0.99, 20.0)
    none = [judge(p, ms, "predicted", value, 40.0, strict) for p, ms, value in rows]
    assert choose(none, TOP1).why.startswith("no precision passes; the fp32 student fails by")
