"""Expected quality: capacity orders, short distillations set the scale."""

import numpy as np
import pytest

from kdcompile.search.quality_predictor import EXPONENT, Capacity, ExpectedLoss, QualityPredictor

MACS = 1_000_000
PRIOR = QualityPredictor.prior(MACS, 1.0)
FULL, QUARTER = Capacity(MACS), Capacity(MACS // 4)


def _fitted(capacities, increases, sd=0.001):
    return PRIOR.fitted(capacities, [ExpectedLoss(float(y), sd) for y in increases])


def test_less_capacity_is_expected_to_cost_more():
    found = [PRIOR.expected_loss(c) for c in (FULL, QUARTER, Capacity(MACS // 16))]
    assert [f.mean for f in found] == pytest.approx([1, 4**EXPONENT, 16**EXPONENT], rel=1e-5)
    assert all(f.sd > f.mean for f in found)  # nothing was measured
    assert PRIOR.fitted([], []) is PRIOR


def test_a_power_law_is_found_where_there_is_one():
    students = [Capacity(int(MACS / r), n % 3) for n, r in enumerate(np.geomspace(2, 200, 12))]
    found = _fitted(students, [0.2 * (MACS / c.macs) ** 0.8 * 1.2**c.missing for c in students])
    assert found.mean == pytest.approx((np.log(0.2), 0.8, np.log(1.2)), abs=0.1)
    at = found.expected_loss(Capacity(MACS // 10))
    assert at.mean == pytest.approx(0.2 * 10**0.8, rel=0.05)
    assert at.sd < 0.2 * at.mean


def test_one_finalist_sets_the_scale_and_leaves_doubt():
    found = _fitted([QUARTER], [0.25], 0.01)
    assert found.expected_loss(QUARTER).mean == pytest.approx(0.25, rel=0.1)
    near, far = (found.expected_loss(Capacity(MACS // ratio)) for ratio in (4, 400))
    assert far.mean > near.mean
    assert far.sd / far.mean > near.sd / near.mean


@pytest.mark.parametrize("increase", [0.0, -0.1])
def test_a_student_as_good_as_its_teacher_is_no_number_below_none(increase):
    found = _fitted([Capacity(MACS // 2), QUARTER], [increase, 0.3], 0.05)
    for ratio in (2, 10, 1000):
        assert 0 < found.expected_loss(Capacity(MACS // ratio)).mean < 100


def test_no_difference_on_few_images_is_not_taken_for_none_at_all():
    found = _fitted([QUARTER, Capacity(MACS // 8), Capacity(MACS // 6)], [0.1, 0.2, 0.0], 0.0)
    for ratio in (4, 6, 8):
        assert 0.001 < found.expected_loss(Capacity(MACS // ratio)).mean < 0.3


def test_an_uncertain_finalist_moves_the_line_less():
    sure, unsure = (_fitted([QUARTER], [20.0], sd) for sd in (0.1, 20.0))
    assert sure.expected_loss(FULL).mean > unsure.expected_loss(FULL).mean > 1


def test_finalists_show_what_a_missing_layer_costs():
    students = [Capacity(MACS // n, n % 2) for n in range(2, 10)]
    found = _fitted(
        students, [(MACS / c.macs) ** 0.5 for c in students]
    )  # nothing is lost with a layer
    wider, whole = Capacity(MACS // 3, 1), Capacity(MACS // 4)
    assert PRIOR.expected_loss(wider).mean > PRIOR.expected_loss(whole).mean
    assert found.expected_loss(wider).mean < found.expected_loss(whole).mean
