"""Recipes that compare the taps' maps: made and fed, and what all of them promise."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kdcompile.config.distill import Distill
from kdcompile.data.augment import Batch
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.recipe import LossInputs
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.taps import Tap

CASES = {  # the shapes of student and teacher at each tap
    "odd sizes": [((3, 2, 5, 7), (3, 4, 5, 7)), ((3, 3, 3, 4), (3, 2, 3, 4))],
    "one image of one pixel": [((1, 2, 1, 1), (1, 3, 1, 1)), ((1, 4, 1, 1), (1, 2, 1, 1))],
    "one channel": [((2, 1, 4, 3), (2, 1, 4, 3)), ((2, 1, 4, 3), (2, 1, 4, 3))],
}
SMALL = [((2, 2, 3, 2), (2, 3, 3, 2)), ((2, 3, 2, 2), (2, 2, 2, 2))]
EQUAL = [((2, 3, 4, 5), (2, 3, 4, 5)), ((2, 4, 2, 3), (2, 4, 2, 3))]
WIDE = [((4, 3, 8, 6), (4, 6, 8, 6)), ((4, 6, 4, 3), (4, 5, 4, 3))]
OUTPUT = (1, 2, 2)  # a density


def made(name, shapes, kind="counting", **options):
    """The recipe for taps of these shapes, in float64."""
    torch.manual_seed(0)
    options = Distill(**options)
    objective = OBJECTIVES[kind](options, torch.ones(2, 1))
    taps = [Tap("a", "a", theirs[1], own[1]) for own, theirs in shapes]
    return find_recipe(name)(taps, options, objective).double()


def drawn(shapes, seed=0):
    """A step's inputs, float64: rather positive maps and densities."""
    random = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(size, generator=random, dtype=torch.float64) + 0.3

    batch = shapes[0][0][0]
    output, target, teacher = (draw(batch, *OUTPUT) for _ in range(3))
    own, theirs = ([draw(*pair[side]) for pair in shapes] for side in (0, 1))
    return LossInputs(output, target, teacher, own, theirs)


def changed(inputs, change):
    """The inputs with every tensor changed."""
    maps = ([change(m) for m in of] for of in (inputs.student_features, inputs.teacher_features))
    return LossInputs(change(inputs.student), inputs.target, change(inputs.teacher), *maps)


def own_term(recipe, inputs):
    """The recipe's one term."""
    (value,) = recipe.extra(inputs).values()
    return value


def affine(adapter, maps):
    """A 1x1 convolution of a map, by numpy."""
    weight, bias = adapter.weight.detach().numpy(), adapter.bias.detach().numpy()
    return np.einsum("oc,nchw->nohw", weight, maps.numpy()) + bias[:, None, None]


def convolved(layer, maps):
    """A convolution of odd size with equal padding, by numpy: a sum of shifted maps."""
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    side, (height, width) = weight.shape[2], maps.shape[2:]
    padded = np.pad(maps, [(0, 0), (0, 0), *[(side // 2, side // 2)] * 2])
    return bias[:, None, None] + sum(
        np.einsum("oc,nchw->nohw", weight[:, :, i, j], padded[:, :, i : i + height, j : j + width])
        for i in range(side)
        for j in range(side)
    )


def squared_errors(recipe, inputs):
    """Of each tap the squared error of every element, by loops over pixels."""
    for adapter, own, theirs in zip(
        recipe.adapters, inputs.student_features, inputs.teacher_features, strict=True
    ):
        yield (affine(adapter, own) - theirs.numpy()) ** 2


def check_nothing_lost(name):
    """A student that is the teacher has no loss at all."""
    recipe, inputs = made(name, EQUAL), drawn(EQUAL)
    be_identity(recipe)
    inputs.student_features[:] = inputs.teacher_features
    assert own_term(recipe, inputs).item() == pytest.approx(0, abs=1e-24)


def cells(size, grid):
    """Where PyTorch's adaptive pooling takes each cell from: slices along one side."""
    return [slice(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]


def be_identity(recipe):
    """Let the adapters leave maps of equal width as they are."""
    with torch.no_grad():
        for adapter in recipe.adapters:
            if hasattr(adapter, "weight"):
                torch.nn.init.eye_(adapter.weight)
                adapter.bias.zero_()


def ground(teacher, images, batch=4):
    """What `prepare` and `learn` look at: `teacher(images)` gives the output and the maps."""
    few = images.split(batch)
    return SimpleNamespace(
        crops=lambda: iter([Batch(part, torch.zeros(len(part)), torch.zeros(0)) for part in few]),
        look=lambda part: teacher(part),
    )


def check_gradients(name, shapes=SMALL, **options):
    """By the maps and by the recipe's own parameters, against finite differences."""
    recipe, inputs = made(name, shapes, **options), drawn(shapes)
    leaves = [m.requires_grad_() for m in (inputs.student, *inputs.student_features)]

    def loss(*_):
        return own_term(recipe, inputs)

    used = torch.autograd.grad(loss(), leaves, allow_unused=True)
    leaves = [leaf for leaf, grad in zip(leaves, used, strict=True) if grad is not None]
    assert torch.autograd.gradcheck(loss, (*leaves, *recipe.parameters()), atol=1e-6)


def check_promises(name, shapes=WIDE):
    """Order and number of images, half precision, dead maps, and parameters that learn."""
    recipe, inputs = made(name, shapes), drawn(shapes)
    recipe.fit(inputs)
    value = own_term(recipe, inputs).item()
    shuffled = changed(inputs, lambda x: x[torch.tensor([2, 0, 3, 1])])
    assert own_term(recipe, shuffled).item() == pytest.approx(value, rel=1e-9)
    twice = changed(inputs, lambda x: torch.cat([x, x]))
    assert own_term(recipe, twice).item() == pytest.approx(value, rel=1e-9)
    one = changed(inputs, lambda x: x[:1])
    assert np.isfinite(own_term(recipe, one).item())
    recipe.float()
    single = own_term(recipe, changed(inputs, lambda x: x.float()))
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(value, rel=1e-4, abs=1e-5)
    half = own_term(recipe, changed(inputs, lambda x: x.bfloat16()))
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(value, rel=0.05, abs=0.02)
    check_dead(recipe, inputs)


def check_dead(recipe, inputs):
    """Maps of zeros on either side, or constants: a finite loss and finite, moderate gradients."""
    for own, theirs in ((0, 1), (1, 0), (0, 0)):
        for constant in (0.0, 2.0):
            dead = changed(inputs, lambda x: x.float().clone())
            students = [m if own else torch.full_like(m, constant) for m in dead.student_features]
            teachers = [
                m if theirs else torch.full_like(m, constant) for m in dead.teacher_features
            ]
            students = [m.requires_grad_() for m in students]
            recipe.zero_grad()
            value = own_term(
                recipe, LossInputs(dead.student, dead.target, dead.teacher, students, teachers)
            )
            value.backward()
            assert value.isfinite()
            grads = [m.grad for m in students if m.grad is not None]
            assert all(g.isfinite().all() and g.abs().max() < 1e4 for g in grads)
            learnt = [p.grad for p in recipe.parameters() if p.grad is not None]
            assert all(g.isfinite().all() for g in learnt)


def check_learning(name, shapes=WIDE):
    """Every parameter and every map has a gradient, and descent along it lowers the loss."""
    recipe, inputs = made(name, shapes), drawn(shapes)
    maps = [m.requires_grad_() for m in inputs.student_features]
    before = own_term(recipe, inputs)
    before.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in recipe.parameters())
    assert any(m.grad is not None and m.grad.abs().sum() > 0 for m in maps)
    with torch.no_grad():
        for leaf in (*recipe.parameters(), *maps):
            if leaf.grad is not None:
                leaf -= 1e-4 * leaf.grad
    assert own_term(recipe, inputs) < before
