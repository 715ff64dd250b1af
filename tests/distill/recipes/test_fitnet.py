"""Recipe `fitnet`: squared error of adapted maps."""

import pytest
import torch
from map_recipes import (
    CASES,
    WIDE,
    be_identity,
    check_gradients,
    check_learning,
    check_nothing_lost,
    check_promises,
    drawn,
    made,
    own_term,
    squared_errors,
)
from recipe_fixtures import load


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_the_loss_is_its_formula(shapes):
    inputs = drawn(shapes)
    recipe = made("fitnet", shapes)
    recipe.scale.copy_(torch.tensor([2.0, 5.0]))
    first, second = (e.mean() for e in squared_errors(recipe, inputs))
    assert own_term(recipe, inputs).item() == pytest.approx((first / 2 + second / 5) / 2, rel=1e-12)
    paper = made("fitnet", shapes, reduction="paper")
    expected = sum(e.sum() / len(inputs.student) for e in squared_errors(paper, inputs))
    assert own_term(paper, inputs).item() == pytest.approx(expected, rel=1e-12)
    assert paper.weights["fitnet"] == 0.5, "the paper's one half"


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_gradients(reduction):
    check_gradients("fitnet", reduction=reduction)


def test_promises():
    check_promises("fitnet")
    check_learning("fitnet")


def test_a_student_that_is_the_teacher_loses_nothing():
    check_nothing_lost("fitnet")


def test_the_fit_measures_in_what_a_constant_leaves():
    """After it the loss is the unexplained share: about 1 for noise, 0 for a linear teacher."""
    shapes = [((8, 2, 30, 30), (8, 3, 30, 30))]
    recipe, inputs = made("fitnet", shapes), drawn(shapes)
    inputs.teacher_features[0] = 7 * inputs.teacher_features[0] + 3
    before = own_term(recipe, inputs).item()
    recipe.fit(inputs)
    assert own_term(recipe, inputs).item() == pytest.approx(1, abs=0.01)
    assert before > 2
    mix = torch.rand(3, 2, dtype=torch.float64)
    inputs.teacher_features[0] = torch.einsum("oc,nchw->nohw", mix, inputs.student_features[0]) - 1
    recipe.fit(inputs)
    assert own_term(recipe, inputs).item() < 1e-5


def test_a_constant_or_broken_teacher_keeps_scale_one():
    recipe, inputs = made("fitnet", WIDE), drawn(WIDE)
    inputs.teacher_features[0] = torch.ones_like(inputs.teacher_features[0])
    inputs.teacher_features[1] = torch.full_like(inputs.teacher_features[1], float("nan"))
    recipe.fit(inputs)
    assert recipe.scale.tolist() == [1, 1]


def test_parity_with_torchdistill():
    fixture = load("fitnet")
    case = fixture["cases"]["mean"]
    student, teacher = case["inputs"]["student"].requires_grad_(), case["inputs"]["teacher"]
    shapes = [(student.shape, teacher.shape)]
    found = {}
    for reduction in ("mean", "paper"):
        recipe, inputs = made("fitnet", shapes, reduction=reduction), drawn(shapes)
        be_identity(recipe)
        inputs.student_features[:], inputs.teacher_features[:] = [student], [teacher]
        found[reduction] = own_term(recipe, inputs)
    assert found["mean"].item() == pytest.approx(case["value"], rel=1e-10)
    (grad,) = torch.autograd.grad(found["mean"], student)
    torch.testing.assert_close(grad, case["gradients"]["student"], rtol=1e-7, atol=1e-9)
    (differs,) = fixture["differs"]
    half = 0.5 * found["paper"].item()
    assert half == pytest.approx(float(differs["expected"]), rel=1e-10)
    assert half != pytest.approx(float(differs["theirs"]), rel=0.5)
