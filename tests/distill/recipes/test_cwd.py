"""Recipe `cwd`: channels as distributions over the pixels."""

import numpy as np
import pytest
import torch
from map_recipes import (
    CASES,
    EQUAL,
    affine,
    check_gradients,
    check_promises,
    drawn,
    made,
    own_term,
)
from recipe_fixtures import load
from scipy.special import rel_entr, softmax

from kdcompile.distill.recipe import LossInputs


def _divergence(own, theirs, tau):
    """tau^2 KL of each channel of each image, and the mean of all."""
    rows = []
    for image, other in zip(own, theirs, strict=True):
        for channel, target in zip(image, other, strict=True):
            p, q = (softmax(x.ravel() / tau) for x in (channel, target))
            rows.append(tau**2 * rel_entr(q, p).sum())
    return np.mean(rows)


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_the_loss_is_its_formula(shapes):
    recipe, inputs = made("cwd", shapes, temperature=3.0), drawn(shapes)
    own = [
        m.numpy() if s[1] == t[1] else affine(a, m)
        for (s, t), a, m in zip(shapes, recipe.adapters, inputs.student_features, strict=True)
    ]
    theirs = [m.numpy() for m in inputs.teacher_features]
    recipe.scale.copy_(torch.tensor([4.0, 0.25]))
    pairs = zip(own, theirs, (2.0, 0.5), strict=True)
    expected = np.mean([_divergence(s / unit, t / unit, 3.0) for s, t, unit in pairs])
    assert own_term(recipe, inputs).item() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    paper = made("cwd", shapes, temperature=3.0, reduction="paper")
    expected = sum(_divergence(s, t, 3.0) for s, t in zip(own, theirs, strict=True))
    assert own_term(paper, inputs).item() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert paper.weights["cwd"] == 50


def test_gradients_and_promises():
    check_gradients("cwd")
    check_promises("cwd")


def test_adapters_learn_but_for_their_biases():
    """A softmax over the pixels does not see a constant."""
    recipe, inputs = made("cwd", CASES["odd sizes"]), drawn(CASES["odd sizes"])
    own_term(recipe, inputs).backward()
    for adapter in recipe.adapters:
        assert adapter.weight.grad.abs().sum() > 1e-6
        assert adapter.bias.grad.abs().max() < 1e-12


def test_no_adapter_where_the_widths_are_equal():
    recipe, inputs = made("cwd", EQUAL), drawn(EQUAL)
    assert not list(recipe.parameters())
    recipe.fit(inputs)
    inputs.student_features[:] = [m + 3 for m in inputs.teacher_features]
    assert own_term(recipe, inputs).item() == pytest.approx(0, abs=1e-12)


def test_the_fit_makes_the_loss_free_of_units():
    """The teacher in other units with the student in them too costs the same."""
    values = []
    for unit in (1.0, 1000.0):
        recipe, inputs = made("cwd", EQUAL), drawn(EQUAL)
        inputs.student_features[:] = [m * unit for m in inputs.student_features]
        inputs.teacher_features[:] = [m * unit for m in inputs.teacher_features]
        recipe.fit(inputs)
        values.append(own_term(recipe, inputs).item())
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert 0.3 < values[0] < 3


@pytest.mark.parametrize("name", ["tau-1", "tau-4"])
def test_parity_with_the_formula(name):
    case = load("cwd")["cases"][name]
    student, teacher = case["inputs"]["student"].requires_grad_(), case["inputs"]["teacher"]
    recipe = made("cwd", [(student.shape, teacher.shape)], **case["hyper"], reduction="paper")
    value = own_term(recipe, LossInputs(student, student, teacher, [student], [teacher]))
    assert value.item() == pytest.approx(case["value"], rel=1e-10)
    (grad,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(grad, case["gradients"]["student"], rtol=1e-7, atol=1e-9)
