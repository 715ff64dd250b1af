"""Recipe `vid`: the likelihood of the teacher's maps."""

import math

import numpy as np
import pytest
import torch
from map_recipes import (
    CASES,
    EQUAL,
    WIDE,
    affine,
    check_gradients,
    check_learning,
    check_promises,
    drawn,
    made,
    own_term,
)
from recipe_fixtures import load

from kdcompile.distill.recipe import LossInputs


def _likelihood(regressor, own, theirs):
    """The negative log-likelihood of an element without its constant, by channel."""
    hidden = np.maximum(affine(regressor.first, own), 0)
    hidden = np.maximum(affine(regressor.second, torch.from_numpy(hidden)), 0)
    mean = affine(regressor.last, torch.from_numpy(hidden))
    losses = []
    for channel in range(theirs.shape[1]):
        spread = math.log(1 + math.exp(regressor.spread[channel].item())) + 1e-5
        gaps = (mean[:, channel] - theirs[:, channel].numpy()) ** 2
        losses.append(0.5 * (gaps / (spread * regressor.unit.item()) + math.log(spread)).mean())
    return np.mean(losses)


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_the_loss_is_its_formula(shapes):
    inputs, found, values = drawn(shapes), {}, []
    for reduction in ("mean", "paper"):
        recipe = made("vid", shapes, reduction=reduction)
        with torch.no_grad():
            for place, regressor in enumerate(recipe.regressors):
                regressor.spread.copy_(torch.linspace(-2, 3, len(regressor.spread)))
                regressor.unit.fill_(place + 0.5)
        features = (inputs.student_features, inputs.teacher_features)
        values = [_likelihood(*each) for each in zip(recipe.regressors, *features, strict=True)]
        found[reduction] = own_term(recipe, inputs).item()
    assert found["mean"] == pytest.approx(np.mean(values), rel=1e-12)
    assert found["paper"] == pytest.approx(sum(values), rel=1e-12)


def test_gradients_and_promises():
    check_gradients("vid")
    check_promises("vid")
    check_learning("vid")


def test_variances_start_at_what_the_fit_leaves():
    """A channel's noise is found, and a channel that fits at once stays above 0."""
    shapes = [((6, 3, 20, 20), (6, 8, 20, 20))]
    recipe, inputs = made("vid", shapes), drawn(shapes)
    student, teacher = inputs.student_features[0], inputs.teacher_features[0]
    teacher[:, 0] = student[:, 0].relu() + 0.5 * teacher[:, 0]
    teacher[:, 1] = 0
    recipe.fit(inputs)
    (regressor,) = recipe.regressors
    spread = regressor.variance() * regressor.unit
    assert 0.25 < spread[0].item() < 0.5, "the noise, and what the layers cannot follow"
    assert spread[1].item() == pytest.approx(0.01 * regressor.unit.item(), rel=0.01)
    assert spread[2:].mean().item() == pytest.approx(1, rel=0.1)
    fitted = own_term(recipe, inputs).item()
    assert fitted < own_term(made("vid", shapes), inputs).item()


def test_few_pixels_do_not_make_it_sure():
    """Eight channels fit eight pixels without a residual, which says nothing of others."""
    shapes = [((4, 8, 2, 1), (4, 8, 2, 1))]
    recipe, inputs = made("vid", shapes), drawn(shapes)
    recipe.fit(inputs)
    (regressor,) = recipe.regressors
    torch.testing.assert_close(regressor.variance().detach(), torch.ones(8, dtype=torch.float64))
    assert own_term(recipe, drawn(shapes, seed=1)).item() < 5


def test_the_fit_makes_the_loss_free_of_units():
    values = []
    for unit in (1.0, 1000.0):
        recipe, inputs = made("vid", WIDE), drawn(WIDE)
        inputs.teacher_features[:] = [m * unit for m in inputs.teacher_features]
        recipe.fit(inputs)
        values.append(own_term(recipe, inputs).item())
    assert values[0] == pytest.approx(values[1], rel=1e-4)
    assert values[0] == pytest.approx(0.5, abs=0.3), "1/2 (1 + log 1) of noise"


def test_broken_maps_leave_the_start():
    recipe, inputs = made("vid", EQUAL), drawn(EQUAL)
    before = [p.clone() for p in recipe.parameters()]
    inputs.teacher_features[:] = [torch.full_like(m, float("nan")) for m in inputs.teacher_features]
    recipe.fit(inputs)
    assert all(torch.equal(a, b) for a, b in zip(before, recipe.parameters(), strict=True))
    assert all(regressor.unit == 1 for regressor in recipe.regressors)


def _with_the_weights_of(case):
    inputs = case["inputs"]
    student, teacher = inputs["student"].requires_grad_(), inputs["teacher"]
    recipe = made("vid", [(student.shape, teacher.shape)], reduction="paper")
    (regressor,) = recipe.regressors
    for layer, name in zip(
        (regressor.first, regressor.second, regressor.last),
        ("weight_1", "weight_2", "weight_3"),
        strict=True,
    ):
        weight = inputs[name].flatten(1)
        layer.weight = torch.nn.Parameter(weight)
        layer.bias = torch.nn.Parameter(weight.new_zeros(len(weight)))
    regressor.spread = torch.nn.Parameter(inputs["variance_parameter"].clone())
    return recipe, regressor, LossInputs(student, student, teacher, [student], [teacher])


def test_parity_with_torchdistill():
    fixture = load("vid")
    case = fixture["cases"]["regressor"]
    recipe, regressor, inputs = _with_the_weights_of(case)
    value = own_term(recipe, inputs)
    assert value.item() == pytest.approx(case["value"], rel=1e-10)
    torch.testing.assert_close(regressor.variance().detach(), case["values"]["variance"])
    grads = torch.autograd.grad(value, (inputs.student, regressor.spread))
    for grad, name in zip(grads, ("student", "variance_parameter"), strict=True):
        torch.testing.assert_close(grad, case["gradients"][name], rtol=1e-7, atol=1e-9)
    start = load("vid")["cases"]["initial-parameter"]
    torch.testing.assert_close(
        made("vid", EQUAL).float().regressors[0].spread.detach().double(),
        torch.full((3,), start["value"], dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )


def test_a_large_variance_does_not_overflow():
    """torchdistill's log(1 + exp) is infinite there."""
    fixture = load("vid")
    (differs,) = fixture["differs"]
    recipe, regressor, inputs = _with_the_weights_of(fixture["cases"]["regressor"])
    with torch.no_grad():
        regressor.spread[0] = 800.0
    assert own_term(recipe, inputs).item() == pytest.approx(float(differs["expected"]), rel=1e-10)
    assert float(differs["theirs"]) == math.inf
