"""Recipe `ickd`: which channels are active together."""

import numpy as np
import pytest
import torch
from map_recipes import (
    CASES,
    EQUAL,
    affine,
    be_identity,
    changed,
    check_gradients,
    check_learning,
    check_promises,
    drawn,
    made,
    own_term,
)
from recipe_fixtures import load

from kdcompile.distill.recipe import LossInputs


def _correlation(image):
    """[C, C] of one image [C, H, W]: each row over its length."""
    rows = [[(a * b).sum() for b in image] for a in image]
    return np.array([np.array(r) / (np.linalg.norm(r) or 1) for r in rows])


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_the_loss_is_its_formula(shapes):
    recipe, inputs = made("ickd", shapes), drawn(shapes)
    losses = []
    for adapter, own, theirs in zip(
        recipe.adapters, inputs.student_features, inputs.teacher_features, strict=True
    ):
        images = zip(affine(adapter, own), theirs.numpy(), strict=True)
        gaps = [_correlation(s) - _correlation(t) for s, t in images]
        losses.append(np.mean([(gap**2).sum() / len(gap) for gap in gaps]))
    assert own_term(recipe, inputs).item() == pytest.approx(np.mean(losses), rel=1e-12, abs=1e-15)
    paper = made("ickd", shapes, reduction="paper")
    assert own_term(paper, inputs).item() == pytest.approx(sum(losses), rel=1e-12, abs=1e-15)


def test_gradients_and_promises():
    check_gradients("ickd")
    check_promises("ickd")
    check_learning("ickd")


def test_correlations_have_no_scale_and_see_no_places():
    recipe, inputs = made("ickd", EQUAL), drawn(EQUAL)
    be_identity(recipe)
    inputs.student_features[:] = [3 * m for m in inputs.teacher_features]
    assert own_term(recipe, inputs).item() == pytest.approx(0, abs=1e-24)
    inputs.student_features[:] = [m.flip(2, 3) for m in inputs.student_features]
    assert own_term(recipe, inputs).item() == pytest.approx(0, abs=1e-24)


def test_the_fit_helps():
    recipe, inputs = made("ickd", EQUAL), drawn(EQUAL)
    mix = torch.rand(3, 3, dtype=torch.float64)
    inputs.teacher_features[0] = torch.einsum("oc,nchw->nohw", mix, inputs.student_features[0])
    before = own_term(recipe, inputs).item()
    recipe.fit(inputs)
    assert own_term(recipe, inputs).item() < before / 2


def _value(case):
    student, teacher = case["inputs"]["student"].requires_grad_(), case["inputs"]["teacher"]
    recipe = made("ickd", [(student.shape, teacher.shape)], reduction="paper")
    be_identity(recipe)
    inputs = LossInputs(student, student, teacher, [student], [teacher])
    return recipe, inputs, own_term(recipe, inputs)


@pytest.mark.parametrize("name", ["mean", "dead-channel"])
def test_parity_with_the_formula(name):
    case = load("ickd")["cases"][name]
    _, _, value = _value(case)
    assert value.item() == pytest.approx(case["value"], rel=1e-10)
    (grad,) = torch.autograd.grad(value, case["inputs"]["student"])
    assert grad.isfinite().all()


def test_the_batch_divides_once():
    """torchdistill divides by it twice, so that a batch given twice costs half."""
    fixture = load("ickd")
    theirs, (differs,) = fixture["cases"]["released"], fixture["differs"]
    assert not theirs["right"]
    recipe, inputs, value = _value(theirs)
    batch = len(inputs.student)
    assert value.item() == pytest.approx(batch * theirs["value"], rel=1e-10)
    twice = own_term(recipe, changed(inputs, lambda x: torch.cat([x, x]).detach()))
    assert twice.item() == pytest.approx(value.item(), rel=1e-12)
    assert float(differs["theirs"]) == pytest.approx(float(differs["expected"]) / 2, rel=1e-10)
