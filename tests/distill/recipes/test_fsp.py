"""Recipe `fsp`: channel products of consecutive taps."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from map_recipes import (
    CASES,
    EQUAL,
    affine,
    be_identity,
    cells,
    check_gradients,
    check_learning,
    check_nothing_lost,
    check_promises,
    drawn,
    made,
    own_term,
)
from recipe_fixtures import load

from kdcompile.core.errors import KDError
from kdcompile.distill.recipe import LossInputs


def _pooled(maps, size):
    rows, columns = (cells(n, k) for n, k in zip(maps.shape[2:], size, strict=True))
    return np.array([[maps[:, :, i, j].max((2, 3)) for j in columns] for i in rows])


def _flows(maps):
    """Of each pair of neighbours [N, C, C'], summed over the cells."""
    for first, second in pairwise(maps):
        size = np.minimum(first.shape[2:], second.shape[2:])
        a, b = _pooled(first, size), _pooled(second, size)  # [h, w, N, C]
        yield sum(
            np.einsum("nc,nd->ncd", a[i, j], b[i, j])
            for i in range(size[0])
            for j in range(size[1])
        ) / np.prod(size)


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_the_loss_is_its_formula(shapes):
    shapes = [*shapes, shapes[0]]  # the third is larger than the second again
    recipe, inputs = made("fsp", shapes), drawn(shapes)
    own = [affine(a, m) for a, m in zip(recipe.adapters, inputs.student_features, strict=True)]
    theirs = [m.numpy() for m in inputs.teacher_features]
    gaps = [
        np.mean(((s - t) ** 2).sum((1, 2)))
        for s, t in zip(_flows(own), _flows(theirs), strict=True)
    ]
    recipe.scale.copy_(torch.tensor([2.0, 5.0]))
    expected = (gaps[0] / 2 + gaps[1] / 5) / 2
    assert own_term(recipe, inputs).item() == pytest.approx(expected, rel=1e-12)
    paper = made("fsp", shapes, reduction="paper")
    assert own_term(paper, inputs).item() == pytest.approx(sum(gaps), rel=1e-12)


def test_gradients_and_promises():
    check_gradients("fsp")
    check_promises("fsp")
    check_learning("fsp")


def test_a_student_that_is_the_teacher_loses_nothing():
    check_nothing_lost("fsp")


def test_a_dead_student_costs_about_one():
    recipe, inputs = made("fsp", EQUAL), drawn(EQUAL)
    recipe.fit(inputs)
    be_identity(recipe)
    inputs.student_features[:] = [torch.zeros_like(m) for m in inputs.student_features]
    assert own_term(recipe, inputs).item() == pytest.approx(1, rel=1e-6)


def test_one_tap_is_refused():
    for shapes in (EQUAL[:1], []):
        with pytest.raises(KDError) as error:
            made("fsp", shapes)
        assert error.value.code == "recipe-taps"
        assert error.value.where == "[distill] taps"
        assert "two pairs" in error.value.fix
    made("fsp", EQUAL)


def test_parity_and_the_norms_of_columns():
    """The paper's squared Frobenius norm, which torchdistill does not compute."""
    fixture = load("fsp")
    case = fixture["cases"]["squared"]
    maps = {
        side: [case["inputs"][f"{side}_{place}"] for place in ("first", "second")]
        for side in ("student", "teacher")
    }
    recipe = made("fsp", [(m.shape, m.shape) for m in maps["student"]], reduction="paper")
    be_identity(recipe)
    for student in maps["student"]:
        student.requires_grad_()
    output = torch.zeros(2)
    value = recipe.extra(LossInputs(output, output, output, maps["student"], maps["teacher"]))[
        "fsp"
    ]
    assert value.item() == pytest.approx(case["value"], rel=1e-10)
    grads = torch.autograd.grad(value, maps["student"])
    for grad, place in zip(grads, ("first", "second"), strict=True):
        expected = case["gradients"][f"student_{place}"]
        torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-9)
    theirs = fixture["cases"]["column-norms"]
    assert not theirs["right"]
    assert value.item() != pytest.approx(theirs["value"], rel=0.1)
    mirrored = made("fsp", [(m.shape, m.shape) for m in maps["student"][::-1]], reduction="paper")
    be_identity(mirrored)
    back = LossInputs(output, output, output, maps["student"][::-1], maps["teacher"][::-1])
    assert own_term(mirrored, back).item() == pytest.approx(value.item(), rel=1e-12)
