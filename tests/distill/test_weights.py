"""Weights of the terms: fixed, ramped, balanced by their gradients."""

import pytest
import torch
from torch import nn

from kdcompile.config.distill import Distill, Ramp
from kdcompile.distill.schedule import TermWeights, gradient_norms, ramped

CPU = torch.device("cpu")
NAMES = ("hard", "soft", "intra")
BASE = {"hard": 1.0, "soft": 4.0, "intra": 10.0}


def _weights(**options):
    return TermWeights(NAMES, {**BASE, **options.get("weights", {})}, Distill(**options), CPU)


def test_ramps():
    assert ramped(3.0, 0.7) == 3.0
    assert [ramped(Ramp(start=4, end=0), p) for p in (0.0, 0.5, 1.0)] == [4, 2, 0]
    cosine = Ramp(start=0, end=2, curve="cosine")
    assert [ramped(cosine, p) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [0, 1 - 0.5**0.5, 1, 2]
    )


def test_fixed_and_ramped_weights_reach_the_device():
    weights = _weights(weights={"soft": Ramp(start=2, end=0)})
    for step, soft in ((0, 2.0), (5, 1.0), (10, 0.0)):
        weights.set(step, 11)
        assert weights.value.tolist() == pytest.approx([1.0, soft, 10.0])
    assert weights.shown() == {"hard": 1.0, "soft": 0.0, "intra": 10.0}


def test_the_same_tensor_is_written():
    weights = _weights()
    before = weights.value
    weights.set(0, 10)
    weights.balance([1.0, 2.0, 4.0], first=True)
    weights.set(1, 10)
    assert weights.value is before


def test_balanced_terms_have_equal_gradients_times_the_specs_share():
    weights = _weights(balance="gradient", weights={"intra": 0.5})
    assert [weights.is_due(step) for step in (0, 1, 100)] == [True, False, True]
    assert not _weights().is_due(0)
    norms = [2.0, 8.0, 0.1]
    weights.balance(norms, first=True)
    weights.set(0, 10)
    shares = [w * n / 2.0 for w, n in zip(weights.value.tolist(), norms, strict=True)]
    assert shares == pytest.approx([1.0, 1.0, 0.5])
    weights.balance([2.0, 2.0, 0.1], first=False)  # the geometric mean of old and new
    weights.set(1, 10)
    assert weights.shown()["soft"] == pytest.approx(0.5)


def test_a_term_without_gradient_keeps_its_weight_and_factors_are_bounded():
    weights = _weights(balance="gradient")
    weights.balance([1.0, 0.0, 1e-9], first=True)
    weights.set(0, 10)
    assert weights.shown() == pytest.approx({"hard": 1.0, "soft": 1.0, "intra": 1e3})
    weights.balance([1.0, float("nan"), float("inf")], first=False)
    weights.set(1, 10)
    assert weights.shown()["soft"] == 1.0


def test_state_round_trip():
    weights, other = _weights(balance="gradient"), _weights(balance="gradient")
    weights.balance([1.0, 2.0, 3.0], first=True)
    other.load_state_dict(weights.state_dict())
    for each in (weights, other):
        each.set(3, 10)
    assert other.shown() == weights.shown()


def test_gradient_norms():
    layer = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[3.0, 4.0]])
    output = layer(x).sum()
    terms = [output, 2 * output, torch.tensor(1.0), layer(0 * x).sum() + torch.ones(1).sum()]
    found = gradient_norms(terms, list(layer.parameters()), lambda t: t)
    assert found == pytest.approx([5.0, 10.0, 0.0, 0.0])
