"""Recipe `kr`: maps fused from deep to shallow."""

from itertools import product

import numpy as np
import pytest
import torch
from map_recipes import (
    CASES,
    EQUAL,
    cells,
    check_gradients,
    check_learning,
    check_promises,
    convolved,
    drawn,
    made,
    own_term,
)
from recipe_fixtures import load

from kdcompile.distill.recipe import LossInputs
from kdcompile.distill.recipes.kr import Fusion, context_loss


def _context(own, theirs):
    """By loops over cells."""
    losses, weights = [((own - theirs) ** 2).mean()], [1.0]
    for grid in (4, 2, 1):
        if grid < min(own.shape[2:]):
            rows, columns = (cells(n, grid) for n in own.shape[2:])
            gaps = [
                (own[:, :, i, j].mean((2, 3)) - theirs[:, :, i, j].mean((2, 3))) ** 2
                for i, j in product(rows, columns)
            ]
            losses.append(np.mean(gaps))
            weights.append(weights[-1] / 2)
    return np.dot(losses, weights) / sum(weights)


def _resized(maps, size):
    rows, columns = (
        [i * old // new for i in range(new)] for old, new in zip(maps.shape[2:], size, strict=True)
    )
    return maps[:, :, rows][:, :, :, columns]


def _outputs(recipe, features):
    """What stands for each of the teacher's maps, the deepest first."""
    deeper = None
    for fusion, maps in zip(reversed(recipe.fusions), reversed(features), strict=True):
        own = convolved(fusion.reduce, maps.numpy())
        if deeper is not None:
            both = np.concatenate([own, _resized(deeper, own.shape[2:])], axis=1)
            share = 1 / (1 + np.exp(-convolved(fusion.attention, both)))
            own = own * share[:, :1] + both[:, own.shape[1] :] * share[:, 1:]
        deeper = own
        yield convolved(fusion.output, own)


@pytest.mark.parametrize("shapes", CASES.values(), ids=CASES)
def test_the_loss_is_its_formula(shapes):
    shapes = [*shapes, shapes[0]]  # the third is larger than the second again
    recipe, inputs = made("kr", shapes), drawn(shapes)
    made_of = list(_outputs(recipe, inputs.student_features))[::-1]
    losses = [
        _context(own, theirs.numpy())
        for own, theirs in zip(made_of, inputs.teacher_features, strict=True)
    ]
    recipe.scale.copy_(torch.tensor([2.0, 5.0, 0.5]))
    expected = np.mean(np.array(losses) / [2.0, 5.0, 0.5])
    assert own_term(recipe, inputs).item() == pytest.approx(expected, rel=1e-10)
    paper = made("kr", shapes, reduction="paper")
    assert own_term(paper, inputs).item() == pytest.approx(sum(losses), rel=1e-10)


def test_gradients_and_promises():
    check_gradients("kr")
    check_promises("kr")
    check_learning("kr")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 7), (5, 3), (9, 6), (4, 4)])
def test_context_of_odd_sizes(height, width):
    random = torch.Generator().manual_seed(height)
    own, theirs = torch.randn(2, 2, 3, height, width, generator=random, dtype=torch.float64)
    expected = _context(own.numpy(), theirs.numpy())
    assert context_loss(own, theirs).item() == pytest.approx(expected, rel=1e-12)
    assert context_loss(theirs, theirs).item() == 0


def test_the_shallow_map_sees_the_deep_one_but_not_the_reverse():
    recipe, inputs = made("kr", EQUAL), drawn(EQUAL)
    shallow, deep = recipe._fused(inputs.student_features)
    first, second = inputs.student_features
    assert not torch.allclose(recipe._fused([first, second + 1])[0], shallow)
    assert torch.equal(recipe._fused([first + 1, second])[1], deep)


def test_the_fit_helps():
    recipe, inputs = made("kr", EQUAL), drawn(EQUAL)
    inputs.teacher_features[:] = [2 * m + 7 for m in inputs.student_features]
    before = own_term(recipe, inputs).item()
    recipe.fit(inputs)
    assert own_term(recipe, inputs).item() < 0.2 * min(before, 1.0)
    for fusion in recipe.fusions:
        beside = fusion.output.weight.detach().clone()
        beside[:, :, 1, 1] = 0
        assert not beside.any()


@pytest.mark.parametrize("name", ["context-6x5", "context-3x5", "context-1x1"])
def test_parity_of_the_context_loss(name):
    case = load("kr")["cases"][name]
    student, teacher = case["inputs"]["student"].requires_grad_(), case["inputs"]["teacher"]
    value = context_loss(student, teacher)
    assert value.item() == pytest.approx(case["value"], rel=1e-10)
    (grad,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(grad, case["gradients"]["student"], rtol=1e-7, atol=1e-9)


def test_the_shorter_side_decides_which_grids_count():
    """torchdistill asks the height alone."""
    fixture = load("kr")
    differs = next(d for d in fixture["differs"] if "only the height" in d["what"])
    maps = fixture["cases"]["context-3x5"]["inputs"]
    value = context_loss(maps["student"].mT, maps["teacher"].mT)
    assert value.item() == pytest.approx(float(differs["expected"]), rel=1e-10)
    assert float(differs["theirs"]) != pytest.approx(float(differs["expected"]), rel=0.01)


def _folded(inputs, name):
    """A fusion with the fixture's convolutions, their batch norms in evaluation folded in."""
    weights = {k.removeprefix(f"{name}."): v for k, v in inputs.items() if k.startswith(name)}
    reduce, output = weights["reduce.weight"], weights["output.weight"]
    fusion = Fusion(reduce.shape[1], len(reduce), len(output), "attention.weight" in weights)
    fusion.double()
    for layer, norm in ((fusion.reduce, "reduce"), (fusion.output, "output")):
        factor = (
            weights[f"{norm}_norm.weight"] / (weights[f"{norm}_norm.running_var"] + 1e-5).sqrt()
        )
        bias = weights[f"{norm}_norm.bias"] - factor * weights[f"{norm}_norm.running_mean"]
        layer.weight.data.copy_(factor[:, None, None, None] * weights[f"{norm}.weight"])
        layer.bias.data.copy_(bias)
    if fusion.attention is not None:
        fusion.attention.weight.data.copy_(weights["attention.weight"])
        fusion.attention.bias.data.copy_(weights["attention.bias"])
    return fusion


def test_parity_of_the_fusion():
    """The whole recipe with the released layers' weights."""
    case = load("kr")["cases"]["fusion-eval"]
    given = case["inputs"]
    students = [given["student_shallow"].requires_grad_(), given["student_deep"].requires_grad_()]
    teachers = [given["teacher_shallow"], given["teacher_deep"]]
    shapes = [(s.shape, t.shape) for s, t in zip(students, teachers, strict=True)]
    recipe = made("kr", shapes, reduction="paper")
    recipe.fusions[0], recipe.fusions[1] = (_folded(given, name) for name in ("shallow", "deep"))
    fused = recipe._fused(students)
    for name, maps, fusion in zip(("shallow", "deep"), fused, recipe.fusions, strict=True):
        torch.testing.assert_close(maps, case["values"][f"{name}_residual"])
        torch.testing.assert_close(fusion.output(maps), case["values"][name])
    value = own_term(recipe, LossInputs(students[0], students[0], students[0], students, teachers))
    assert value.item() == pytest.approx(case["value"], rel=1e-10)
    for grad, name in zip(torch.autograd.grad(value, students), ("shallow", "deep"), strict=True):
        expected = case["gradients"][f"student_{name}"]
        torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-9)


def test_maps_that_are_not_square_are_fused():
    """The released fusion takes one number for the size."""
    fixture = load("kr")
    assert any("not square" in d["what"] for d in fixture["differs"])
    recipe, inputs = made("kr", CASES["odd sizes"]), drawn(CASES["odd sizes"])
    assert recipe._fused(inputs.student_features)[0].shape[2:] == (5, 7)
