"""Recipe `at`: attention maps of any width."""

import numpy as np
import pytest
import torch
from map_recipes import (
    CASES,
    EQUAL,
    WIDE,
    changed,
    check_gradients,
    check_promises,
    drawn,
    made,
    own_term,
)
from recipe_fixtures import load

from kdcompile.distill.recipe import LossInputs
from kdcompile.kernels.attention_transfer import attention_transfer


def _attention(image):
    """The energy at each pixel over its length, of one image [C, H, W]."""
    energy = np.array([[(image[:, i, j] ** 2).sum() for j in range(image.shape[2])]
                       for i in range(image.shape[1])])  # fmt: skip
    length = np.sqrt((energy**2).sum())
    return energy / length if length else energy


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_the_loss_is_its_formula(shapes):
    inputs = drawn(shapes)
    taps = [
        np.mean([
            np.linalg.norm(_attention(s) - _attention(t))
            for s, t in zip(own.numpy(), theirs.numpy(), strict=True)
        ])
        for own, theirs in zip(inputs.student_features, inputs.teacher_features, strict=True)
    ]  # fmt: skip
    recipe = made("at", shapes)
    assert own_term(recipe, inputs).item() == pytest.approx(np.mean(taps), rel=1e-12, abs=1e-15)
    paper = made("at", shapes, reduction="paper")
    assert own_term(paper, inputs).item() == pytest.approx(sum(taps), rel=1e-12, abs=1e-15)
    assert paper.weights["at"] == 0.05, "half of the paper's beta of 0.1"


def test_gradients_and_promises():
    check_gradients("at")
    check_promises("at")
    assert not list(made("at", WIDE).parameters())


def test_attention_has_no_scale():
    recipe, inputs = made("at", EQUAL), drawn(EQUAL)
    value = own_term(recipe, inputs).item()
    louder = [-3 * m for m in inputs.student_features]
    scaled = LossInputs(
        inputs.student, inputs.target, inputs.teacher, louder, inputs.teacher_features
    )
    assert own_term(recipe, scaled).item() == pytest.approx(value, rel=1e-12)
    inputs.student_features[:] = [2 * m for m in inputs.teacher_features]
    assert own_term(recipe, inputs).item() == pytest.approx(0, abs=1e-15)
    mixed = changed(inputs, lambda m: m.flip(1))
    assert own_term(recipe, mixed).item() == pytest.approx(0, abs=1e-15), "channels in any order"


@pytest.mark.parametrize("name", ["paper", "paper-zero"])
def test_parity_with_torchdistill(name):
    case = load("at")["cases"][name]
    student, teacher = case["inputs"]["student"].requires_grad_(), case["inputs"]["teacher"]
    recipe = made("at", [(student.shape, teacher.shape)])
    value = recipe.extra(LossInputs(student, student, teacher, [student], [teacher]))["at"]
    assert value.item() == pytest.approx(case["value"], rel=1e-10)
    (grad,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(grad, case["gradients"]["student"], rtol=1e-7, atol=1e-9)


def test_the_released_mean_of_squares_is_another_loss():
    fixture = load("at")
    (differs,) = fixture["differs"]
    maps = fixture["cases"]["code"]["inputs"]
    student, teacher = maps["student"], maps["teacher"]
    recipe = made("at", [(student.shape, teacher.shape)])
    ours = recipe.extra(LossInputs(student, student, teacher, [student], [teacher]))["at"]
    assert ours.item() == pytest.approx(float(differs["expected"]), rel=1e-10)
    code = attention_transfer(student, teacher, "code")
    assert code.item() == pytest.approx(float(differs["theirs"]), rel=1e-10)
