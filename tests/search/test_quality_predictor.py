"""Expected quality: capacity orders, short distillations set the scale."""

import numpy as np
import pytest

from kdcompile.search.quality_predictor import EXPONENT, ExpectedLoss, QualityPredictor

MACS = 1_000_000
PRIOR = QualityPredictor.prior(MACS, 1.0)


def _fitted(macs, increases, sd=0.001):
    return PRIOR.fitted(macs, [ExpectedLoss(float(y), sd) for y in increases])


def test_less_capacity_is_expected_to_cost_more():
    found = [PRIOR.expected_loss(macs) for macs in (MACS, MACS // 4, MACS // 16)]
    assert [f.mean for f in found] == pytest.approx([1, 4**EXPONENT, 16**EXPONENT], rel=1e-5)
    assert all(f.sd > f.mean for f in found)  # nothing was measured
    assert PRIOR.fitted([], []) is PRIOR


def test_a_power_law_is_found_where_there_is_one():
    macs = [int(MACS / ratio) for ratio in np.geomspace(2, 200, 12)]
    found = _fitted(macs, [0.2 * (MACS / m) ** 0.8 for m in macs])
    assert found.mean == pytest.approx((np.log(0.2), 0.8), abs=0.05)
    at = found.expected_loss(MACS // 10)
    assert at.mean == pytest.approx(0.2 * 10**0.8, rel=0.05)
    assert at.sd < 0.2 * at.mean


def test_one_finalist_sets_the_scale_and_leaves_doubt():
    found = _fitted([MACS // 4], [0.25], 0.01)
    assert found.expected_loss(MACS // 4).mean == pytest.approx(0.25, rel=0.1)
    near, far = (found.expected_loss(MACS // ratio) for ratio in (4, 400))
    assert far.mean > near.mean
    assert far.sd / far.mean > near.sd / near.mean


@pytest.mark.parametrize("increase", [0.0, -0.1])
def test_a_student_as_good_as_its_teacher_is_no_number_below_none(increase):
    found = _fitted([MACS // 2, MACS // 4], [increase, 0.3], 0.05)
    for ratio in (2, 10, 1000):
        assert 0 < found.expected_loss(MACS // ratio).mean < 100


def test_no_difference_on_few_images_is_not_taken_for_none_at_all():
    found = _fitted([MACS // 4, MACS // 8, MACS // 6], [0.1, 0.2, 0.0], 0.0)
    for ratio in (4, 6, 8):
        assert 0.001 < found.expected_loss(MACS // ratio).mean < 0.3


def test_an_uncertain_finalist_moves_the_line_less():
    sure, unsure = (_fitted([MACS // 4], [20.0], sd) for sd in (0.1, 20.0))
    assert sure.expected_loss(MACS).mean > unsure.expected_loss(MACS).mean > 1
