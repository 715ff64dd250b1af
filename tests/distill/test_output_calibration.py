"""Calibration of a student's output: what is fitted, when it is kept, and where it is folded."""

import numpy as np
import pytest
import torch
from torch import nn

from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.distill import output_calibration
from kdcompile.distill.output_calibration import FEWEST, _Fit, calibrate_output
from kdcompile.tasks.builtin import Classification, Counting, Regression

DEVICE = torch.device("cpu")
MIRRORED = Preprocess(1, (0.0,), (1.0,), (16, 16), (16, 16), "mirror")


def _photos(number, truth, seed=0):
    """Grey photos of which a mean brightness of b means `truth(b)`, with some noise."""
    random = np.random.default_rng(seed)
    found = []
    for place in range(number):
        level = random.integers(20, 230)
        array = np.full((16, 16, 1), level, np.uint8)
        array[0, 0, 0] = place  # no two alike
        found.append(truth(level / 255, random, str(place), array))
    return found


def _counted(factor):
    def photo(level, random, name, array):
        count = round(factor * 256 * level * random.uniform(0.95, 1.05))
        points = random.uniform(0, 16, (count, 2)).astype(np.float32)
        return Photo(name, points, array=array)

    return photo


def _valued(scale, offset):
    def photo(level, random, name, array):
        return Photo(name, array=array, label=scale * level + offset + random.normal(0, 0.01))

    return photo


class _Mean(nn.Module):
    """The mean of the pixels, through a linear layer and what may follow."""

    def __init__(self, outputs=1, then=None, bias=True):
        super().__init__()
        self.head = nn.Linear(1, outputs, bias=bias)
        self.then = then or nn.Identity()
        nn.init.ones_(self.head.weight)
        if bias:
            nn.init.zeros_(self.head.bias)

    def forward(self, images):
        return self.then(self.head(images.mean((1, 2, 3)).unsqueeze(1)))


def _density(then=None):
    network = nn.Sequential(nn.Conv2d(1, 1, 1), *([then] if then else []))
    nn.init.ones_(network[0].weight)
    nn.init.zeros_(network[0].bias)
    return network


def test_a_count_that_is_too_high_is_scaled():
    train, val = _photos(40, _counted(0.5)), _photos(40, _counted(0.5), seed=1)
    network = _density()
    found = calibrate_output(network, train, val, MIRRORED, DEVICE, Counting())
    assert found.kept
    assert found.kind == "scale"
    assert found.scale == pytest.approx(0.5, rel=0.05)
    assert found.offset == 0
    assert found.after < 0.2 * found.before
    assert network[0].weight.item() == pytest.approx(found.scale)


def test_a_count_that_is_right_stays():
    train, val = _photos(40, _counted(1.0)), _photos(40, _counted(1.0), seed=1)
    network = _density()
    found = calibrate_output(network, train, val, MIRRORED, DEVICE, Counting())
    assert not found.kept
    assert "no more than their noise" in found.why
    assert network[0].weight.item() == 1.0
    assert network[0].bias.item() == 0.0


def test_a_scale_goes_through_a_relu_and_not_through_a_sigmoid():
    train, val = _photos(40, _counted(0.5)), _photos(40, _counted(0.5), seed=1)
    assert calibrate_output(_density(nn.ReLU()), train, val, MIRRORED, DEVICE, Counting()).kept
    behind = _density(nn.Sigmoid())
    found = calibrate_output(behind, train, val, MIRRORED, DEVICE, Counting())
    assert not found.kept
    assert found.why == "the network's last layer does not scale its output"
    assert behind[0].weight.item() == 1.0


@pytest.mark.parametrize("bias", [True, False])
def test_a_value_gets_a_scale_and_an_offset_where_a_bias_can_hold_it(bias):
    train, val = _photos(40, _valued(3.0, -0.5)), _photos(40, _valued(3.0, -0.5), seed=1)
    network = _Mean(bias=bias)
    found = calibrate_output(network, train, val, MIRRORED, DEVICE, Regression())
    assert found.kept
    assert found.kind == ("affine" if bias else "scale")
    if bias:
        assert (found.scale, found.offset) == pytest.approx((3.0, -0.5), abs=0.05)
        assert network.head.bias.item() == pytest.approx(found.offset)
    else:
        assert found.offset == 0


def test_logits_get_a_temperature_and_no_class_moves():
    def photo(level, random, name, array):
        return Photo(name, array=array, label=float(random.random() < 0.8))

    class Sure(_Mean):
        def forward(self, images):
            logits = self.head(images.mean((1, 2, 3)).unsqueeze(1) * 0 + 1)
            return logits * torch.tensor([-8.0, 8.0])

    network = Sure(2)
    train, val = _photos(60, photo), _photos(60, photo, seed=1)
    given = torch.rand(4, 1, 16, 16)
    before = network(given)
    found = calibrate_output(network, train, val, MIRRORED, DEVICE, Classification())
    assert found.kept
    assert found.kind == "temperature"
    assert found.scale < 0.3
    low, high = network(given).detach()[0]
    odds = float((high - low).exp())
    right = np.mean([p.label for p in (*train, *val)])
    assert odds == pytest.approx(right / (1 - right), rel=0.02)
    assert (network(given).argmax(1) == before.argmax(1)).all()


def test_few_photos_tell_nothing():
    many = _photos(40, _counted(0.5))
    few = _photos(FEWEST - 1, _counted(0.5), seed=1)
    assert calibrate_output(_density(), many, few, MIRRORED, DEVICE, Counting()) is None
    enough = _photos(FEWEST, _counted(0.5), seed=1)
    assert calibrate_output(_density(), many, enough, MIRRORED, DEVICE, Counting()).kept


def test_the_gain_is_of_photos_that_the_fit_left_out():
    """Ten errors at random: fitted to itself each would gain, left out none does."""
    random = np.random.default_rng(3)
    fit = _Fit("affine", 2)
    none = np.zeros(0), np.zeros(0)
    gains = []
    for _ in range(200):
        given = random.normal(size=20)
        true = given + random.normal(size=20)
        before, after = fit.validated(none, (given, true))
        itself = fit.losses(given, true, *fit.best(given, true))
        assert itself.mean() <= before.mean() + 1e-9
        gains.append(output_calibration._least_gain(before - after) > 0)
    assert np.mean(gains) < 0.05


@pytest.mark.parametrize(("power", "scale"), [(1, 2.0), (2, 2.9)])
def test_absolute_errors_take_the_median_and_squared_ones_the_mean(power, scale):
    given, true = np.ones(10), np.array([2.0] * 9 + [11.0])
    found, offset = _Fit("scale", power).best(given, true)
    assert (found, offset) == (pytest.approx(scale, abs=1e-3), 0)


def test_a_negative_scale_is_none():
    assert _Fit("scale", 2).best(np.ones(4), -np.ones(4)) == (1.0, 0.0)
