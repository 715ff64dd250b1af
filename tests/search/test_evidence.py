"""From a block's error to the metric, and from measured blocks to others."""

import numpy as np
import pytest
from staged_ground import OPTIONS, architecture, write_build
from torch import nn

from kdcompile.core.store import Store
from kdcompile.models.cuts import Cut
from kdcompile.models.staged import stage
from kdcompile.search.predictors import sensitivity as evidence
from kdcompile.search.predictors.block_data import prepare_training_data, training_data
from kdcompile.search.predictors.block_distillation import BlockResult
from kdcompile.search.predictors.block_error_model import (
    Regression,
    convolution_weights,
    errors_of,
    measure_first,
)
from kdcompile.search.predictors.sensitivity import (
    Curve,
    SensitivityPoint,
    expected_loss,
    paired_increase,
    sensitivity,
)
from kdcompile.search.spaces.staged import Block, blocks_of
from kdcompile.tasks.task import find_task

CUTS = [Cut("a", 1, 32, 2, 1), Cut("b", 2, 64, 2, 1)]


def _damage(error, increase, sd=0.1):
    return SensitivityPoint(0, 1, error, increase, sd)


def test_a_curve_rises_from_nothing_and_goes_on():
    curve = Curve.of([_damage(1.0, 4.0), _damage(0.5, 1.0), _damage(0.1, -0.2)])
    assert curve.increases == (0, 0, 1, 4)
    assert [curve.at(e) for e in (0, 0.1, 0.3, 0.75, 1.0, 2.0)] == pytest.approx(
        [0, 0, 0.5, 2.5, 4, 8]
    )


def test_where_a_curve_falls_neighbours_share_their_weighted_mean():
    curve = Curve.of([_damage(0.2, 3.0, 0.2), _damage(0.4, 1.0, 0.1), _damage(0.9, 5.0)])
    shared = (3.0 / 0.04 + 1.0 / 0.01) / (1 / 0.04 + 1 / 0.01)
    assert curve.increases == pytest.approx((0, shared, shared, 5))


def test_expected_adds_up_with_deviations_of_curve_and_error():
    curve = Curve((0.0, 1.0), (0.0, 4.0), (0.0, 0.6))
    found = expected_loss([curve, curve], [(0.5, 0.1), (1.0, 0.0)])
    assert found.mean == pytest.approx(6)
    assert found.sd == pytest.approx(np.sqrt(0.3**2 + 0.4**2 + 0.6**2))


def test_the_increase_is_paired():
    task = find_task("counting")
    whole, worse = np.array([1.0, -2, 3, -4]), np.array([2.0, -3, 4, -5])
    increase, sd = paired_increase(task, whole, worse, 0)
    assert increase == pytest.approx(1)
    assert sd == pytest.approx(0, abs=1e-12)  # every photo is worse by the same
    assert paired_increase(task, whole, worse[::-1], 0)[1] > 0.5


def test_no_rate_is_surer_than_one_photo():
    task, right = find_task("classification"), np.zeros(20)
    assert paired_increase(task, right, right, 0) == (0, 1 / 20)
    wrong = np.arange(20) < 10.0
    assert paired_increase(task, right, wrong.astype(float), 0)[1] == pytest.approx(0.11, abs=0.02)


def test_damage_to_a_teacher_costs_what_it_takes_away(tmp_path, monkeypatch):
    context = prepare_training_data(write_build(tmp_path)(), OPTIONS, Store(tmp_path / "store"))
    curves = sensitivity(context, images=12)
    assert len(curves) == len(training_data(context).cuts) == 2
    for curve in curves:
        assert curve.errors[0] == curve.increases[0] == 0
        assert curve.errors[-1] == pytest.approx(1, abs=0.05)  # means alone
        assert curve.increases[-1] > 0.3  # digits of a count of 1 to 4
        assert curve.at(curve.errors[1]) < 0.6 * curve.increases[-1]  # half of the channels
    monkeypatch.setattr(evidence, "_measure_point", None)
    assert sensitivity(context, images=12) == curves


def _truth(block):
    return 0.1 * (block.width / CUTS[block.index].channels) ** -0.7 * (1 + block.index)


def _result(block, path):
    return BlockResult(block, _truth(block), 0.001, 1.0, path)


def _blocks(kinds=("conv", "separable"), widths=(4, 8, 16, 32)):
    made = []
    for kind in kinds:
        for width in widths:
            for stride in (1, 2):
                made += blocks_of(architecture(width=width, block=kind, stride=stride))
    return [Block(**{**vars(b), "in_width": 8}) for b in dict.fromkeys(made)]


def test_a_regression_predicts_what_was_not_measured(tmp_path):
    cuts, blocks = CUTS, _blocks()
    regression = Regression.of(cuts, [_result(b, tmp_path) for b in blocks[::3]])
    for block, (error, sd) in zip(blocks, regression.predict(blocks), strict=True):
        assert error == pytest.approx(_truth(block), rel=0.25)
        assert abs(error - _truth(block)) < 3 * sd
    unlike = Block(**{**vars(blocks[0]), "block": "bottleneck", "depth": 8})
    (near, near_sd), (far, far_sd) = regression.predict([blocks[0], unlike])
    assert far_sd / far > 1.5 * near_sd / near


def test_measured_errors_go_before_predicted_ones(tmp_path):
    cuts, (first, second, *_) = CUTS, _blocks()
    result = _result(first, tmp_path)
    regression = Regression.of(cuts, [result])
    found = errors_of([first, second], {first: result}, regression)
    assert found[0][0] == result.error
    assert found[0][1] < 0.2 * result.error
    assert found[1] == regression.predict([second])[0]
    assert found[1][1] > 0.2 * found[1][0]


@pytest.mark.parametrize("kind", ["conv", "separable", "repvgg", "bottleneck"])
@pytest.mark.parametrize(("stride", "down"), [(1, "pool"), (2, "pool"), (4, "stride")])
def test_weights_are_those_of_the_module(kind, stride, down):
    block = Block(0, 5, 1.0, 1, kind, 12, 2, stride, down, 1)
    module = stage(block.settings, 5)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert convolution_weights(block) == sum(m.weight.numel() for m in convolutions)


def test_nothing_measured_is_a_wide_guess():
    ((error, sd),) = Regression.of(CUTS, []).predict(_blocks()[:1])
    assert error == 1
    assert sd > 1


def test_unlike_blocks_are_measured_first():
    blocks = _blocks(kinds=("conv", "separable", "repvgg", "bottleneck"))
    cuts = CUTS
    first = measure_first(cuts, blocks, [], 6)
    assert len(set(first)) == 6
    assert len({block.block for block in first}) >= 3
    assert {block.index for block in first} == {0, 1}
    rest = measure_first(cuts, blocks, first, 100)
    assert set(rest) == set(blocks) - set(first)
    assert measure_first(cuts, blocks, blocks, 3) == []
