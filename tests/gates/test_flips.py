"""Photos that got worse: which they are, the exact bounds of their share, and the verdict."""

import numpy as np
import pytest

from kdcompile.config.gates import fraction
from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.gates.churn import FlipsGate, find_flips, flips, photos_that_decide, share_bounds
from kdcompile.tasks.task import find_task


def test_exact_bounds_are_those_of_the_binomial_tails():
    assert share_bounds(0, 20)[1] == pytest.approx(1 - 0.05 ** (1 / 20))
    assert share_bounds(20, 20) == (pytest.approx(0.05 ** (1 / 20)), 1)
    low, high = share_bounds(3, 30)
    counts = np.random.default_rng(0).binomial(30, [[low], [high]], (2, 40000))
    assert (counts[0] >= 3).mean() == pytest.approx(0.05, abs=0.005)
    assert (counts[1] <= 3).mean() == pytest.approx(0.05, abs=0.005)


def test_a_class_flips_where_it_was_right_and_is_wrong():
    found = find_flips(
        find_task("classification"), np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 0, 1]), 0.0
    )
    assert found.worse.tolist() == [False, True, False, False]
    assert found.share == 0.25


def test_a_count_flips_where_its_error_grew_by_more_than_the_tolerance():
    teacher = np.array([2.0, -2, 2, 2])  # a mean absolute error of 2
    student = np.array([-4.0, 4.1, 0, 9])
    found = find_flips(find_task("counting"), teacher, student, 1.0)
    assert found.worse.tolist() == [False, True, False, True]
    assert "grew by more than 2" in found.rule


@pytest.mark.parametrize(
    ("n", "wrong", "most", "verdict"),
    [
        (400, 4, "5%", "passed"),
        (400, 40, "5%", "failed"),
        (400, 20, "5%", "inconclusive"),
        (20, 0, "5%", "inconclusive"),  # none of 20 leaves 14 % possible
        (59, 0, "5%", "passed"),
        (58, 0, "5%", "inconclusive"),
    ],
)
def test_the_whole_interval_decides(make_context, n, wrong, most, verdict):
    true = np.arange(n) % 3.0
    student = true.copy()
    student[:wrong] = (true[:wrong] + 1) % 3
    result = flips(FlipsGate(max=most), make_context("classification", true, true, student))
    assert result.verdict == verdict
    assert f"{wrong} of {n} images got worse" in result.observed
    (found,) = result.measurements
    assert found.value == pytest.approx(wrong / n)
    assert found.low <= found.value <= found.high


def test_a_teacher_that_is_always_wrong_cannot_be_flipped(make_context):
    true = np.zeros(100)
    result = flips(FlipsGate(max="5%"), make_context("classification", true, true + 1, true + 1))
    assert result.verdict == "passed"


def test_no_photos_give_no_verdict(make_context):
    with pytest.raises(KDError) as caught:
        flips(FlipsGate(max="5%"), make_context("counting", [], [], []))
    assert caught.value.code == "accuracy-images"


def judged(make_context, n, wrong, most):
    """The gate's result on n photos of which so many got worse."""
    true = np.zeros(n)
    context = make_context("classification", true, true, (np.arange(n) < wrong).astype(float))
    return flips(FlipsGate(max=most), context)


@pytest.mark.parametrize(
    ("n", "wrong", "most"),
    [(20, 0, "5%"), (1, 0, "1%"), (58, 0, "5%"), (20, 1, "10%"), (50, 10, "15%"), (400, 19, "5%")],
)
def test_an_undecided_gate_says_how_many_photos_decide(make_context, n, wrong, most):
    result = judged(make_context, n, wrong, most)
    assert result.verdict == "inconclusive"
    needed = photos_that_decide(wrong, n, fraction(most))
    assert f"; {needed} with this share of worse ones would decide" in result.reason
    share = wrong / n
    worse = int(np.ceil(share * needed) if share < fraction(most) else share * needed)
    assert judged(make_context, needed, worse, most).verdict != "inconclusive"
    if not wrong:
        assert judged(make_context, needed - 1, 0, most).verdict == "inconclusive"


def test_a_share_that_is_the_limit_is_never_decided(make_context):
    result = judged(make_context, 400, 20, "5%")
    assert result.verdict == "inconclusive"
    assert "no number of them decides a share that is the limit" in result.reason


HEAD = """target = "cpu"
[task]
kind = "counting"
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "points-jsonl"
root = "."
[gates]
"""


@pytest.mark.parametrize("gate", ["flips = { max", "previous = { max_flips"])
@pytest.mark.parametrize("none", ["0%", "0.00%"])
def test_a_limit_that_no_number_of_photos_proves_is_refused_and_the_fix_works(tmp_path, gate, none):
    spec = tmp_path / "kdcompile.toml"
    spec.write_text(f'{HEAD}{gate} = "{none}" }}\n')
    with pytest.raises(KDError, match="no number of images proves") as caught:
        load_spec(spec)
    assert caught.value.code == "spec-invalid"
    assert gate.split()[0] in caught.value.where
    for limit, photos in (("5%", 59), ("1%", 299)):  # what the fix says
        assert f'"{limit}" takes {photos}' in caught.value.fix
        spec.write_text(f'{HEAD}{gate} = "{limit}" }}\n')
        load_spec(spec)
        assert share_bounds(0, photos)[1] <= fraction(limit) < share_bounds(0, photos - 1)[1]


def test_a_part_of_a_worse_photo_counts_as_one():
    assert photos_that_decide(1, 4, 0.5) == 18
    assert photos_that_decide(1, 3, 0.5) == 35
