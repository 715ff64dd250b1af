"""Closed-form errors: exact where they must be, and they order students as inheriting does."""

from random import Random

import pytest
import torch
from droppable_networks import Block, Digits, Mobile
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import conv2d, interpolate

from kdcompile.core.errors import KDError
from kdcompile.distill.inherit import inherit
from kdcompile.distill.inherit.solve import Gate
from kdcompile.models.channels import trace
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.predictors.layer_reconstruction import RIDGE, LayerErrors, nested
from kdcompile.search.spaces.pruned import LayerSpace


def _crops(channels, number=3):
    torch.manual_seed(1)
    coarse = [torch.randn(4, channels, 5, 5) for _ in range(number)]
    return [interpolate(c, size=(16, 16), mode="bicubic") + torch.randn(1) / 10 for c in coarse]


@pytest.fixture(scope="module")
def digits():
    torch.manual_seed(0)
    teacher = Digits().eval()
    space = LayerSpace(teacher, [1, 1, 16, 16], 4, 0)
    return teacher, space, LayerErrors(teacher, space.template.channels, _crops(1), 4)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("gated", [False, True])
def test_nested_equals_one_regression_after_another(groups, gated):
    torch.manual_seed(0)
    x, prior = torch.randn(groups, 400, 10), torch.randn(groups, 10, 4)
    y = x @ prior + torch.randn(groups, 400, 4) / 3 + 1
    ones = torch.ones(groups, 1, 4)
    gate = Gate(ones, ones / 2) if gated else None
    steps = [0, 3, 7, 10]
    errors, _ = nested(x, y, prior, steps, gate)
    rows, test = x[:, :350].double(), x[:, 350:].double()
    middle, level = rows.mean(1, keepdim=True), y[:, :350].double().mean(1, keepdim=True)
    load = RIDGE * (rows - middle).square().mean((1, 2))[:, None, None]
    for step, wrong in zip(steps, errors, strict=True):
        a = (rows - middle)[:, :, :step]
        right = a.mT @ (y[:, :350] - level) / 350 + load * prior[:, :step]
        weight = torch.linalg.solve(a.mT @ a / 350 + load * torch.eye(step), right)
        made, known = (test - middle)[:, :, :step] @ weight + level, y[:, 350:].double()
        if gate is not None:
            made, known = gate(made), gate(known)
        assert torch.allclose(wrong, (made - known).square().sum(1), rtol=1e-3, atol=1e-3)


def test_the_teacher_itself_has_no_error(digits):
    _, space, errors = digits
    assert errors.expected_error(space.uniform(1.0)) < 1e-3
    assert errors.error("6", 16, 32) < 1e-3
    assert errors.unmeasured == []
    assert set(errors.sensitivity) == {"0", "2", "6", "8", "10"}
    assert all(weight > 0 for weight in errors.sensitivity.values())


class Uncalled(nn.Module):
    """Reads a layer's parameters and does not call it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        x = conv2d(x, self.first.weight, self.first.bias)
        return self.second(x.relu())


def test_a_layer_that_is_not_called_is_named(caplog):
    teacher = Uncalled().eval()
    errors = LayerErrors(teacher, trace(teacher, (1, 1, 16, 16)), _crops(1))
    assert errors.unmeasured == ["first"]
    assert errors.error("first", 1, 4) == 0
    assert "no error is known of first" in caplog.text


def test_fewer_inputs_are_worse(digits):
    _, _, errors = digits
    by_width = [errors.error("8", width, 32) for width in (0, 8, 16, 24, 32)]
    assert by_width == sorted(by_width, reverse=True)
    assert by_width[0] > 0.9
    between = errors.error("8", 14, 32)
    assert by_width[2] < between < by_width[1]


def test_it_orders_students_as_inheriting_does(digits, tmp_path):
    teacher, space, errors = digits
    crops, draw = _crops(1), Random(3)
    with torch.no_grad():
        theirs = torch.cat([teacher(batch) for batch in crops])
    expected_error, found = [], []
    for _ in range(10):
        architecture = space.random(draw)
        student = student_from_architecture(teacher, architecture, tmp_path)
        inherit(teacher, student, architecture, crops)
        with torch.no_grad():
            own = torch.cat([student.eval()(batch) for batch in crops])
        found.append(float((own - theirs).square().mean()))
        expected_error.append(errors.expected_error(architecture))
    assert spearmanr(expected_error, found).statistic > 0.9


def test_a_dropped_part_costs_what_no_linear_map_can_make_good():
    torch.manual_seed(0)
    linear = nn.Conv2d(4, 4, 1)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 1), nn.Softplus(), linear, nn.ReLU()),
        *(Block(4), Block(4), nn.Conv2d(4, 1, 1)),
    ).eval()
    nn.init.zeros_(network[4].c2.weight)  # this block gives back its input
    linear.weight.data.abs_()  # so that its ReLU never acts
    linear.bias.data.fill_(1)
    errors = LayerErrors(network, trace(network, (1, 1, 16, 16)), _crops(1))
    assert errors.dropped("2") < 1e-2
    assert errors.dropped("4") < 1e-2
    assert errors.dropped("5") > 0.05
    parts = [errors.dropped(name) for name in ("4", "5")]
    modules = {}
    together = errors.expected_error({"modules": modules, "dropped": ["4", "5"]})
    assert together == pytest.approx(sum(p**2 for p in parts) ** 0.5)


def test_every_kind_of_layer_and_the_same_bits_twice():
    torch.manual_seed(0)
    teacher = Mobile().eval()
    channels = trace(teacher, (1, 3, 16, 16))
    one, two = (LayerErrors(teacher, channels, _crops(3), 4) for _ in range(2))
    assert one.sensitivity == two.sensitivity
    assert one.error("grouped", 20, 16) == two.error("grouped", 20, 16) > 0
    assert 0 < one.error("up", 16, 16) < one.error("up", 4, 16)
    assert one.error("blocks.0.body.3", 8, 8) == 0


def test_activations_that_are_not_finite():
    teacher = Digits().eval()
    teacher[0].weight.data.fill_(float("nan"))
    with pytest.raises(KDError) as refused:
        LayerErrors(teacher, trace(teacher, (1, 1, 16, 16)), _crops(1))
    assert refused.value.code == "inherit-nonfinite"
    assert "data.mean" in refused.value.fix
