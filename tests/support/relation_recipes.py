"""Recipes that compare the images of a batch: one made for a pair of taps, and what all promise."""

import numpy as np
import pytest
import torch

from kdcompile.config.spec import Distill
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.recipe import LossInputs
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.taps import Tap

MAPS = {  # student's and teacher's shape
    "maps": ((5, 3, 3, 5), (5, 6, 3, 5)),
    "one channel": ((4, 1, 3, 2), (4, 1, 3, 2)),
    "one cell": ((6, 4, 1, 1), (6, 3, 1, 1)),
    "two images": ((2, 3, 4, 1), (2, 2, 4, 1)),
    "tokens": ((3, 7, 5), (3, 7, 4)),
    "vectors": ((4, 5), (4, 8)),
}
LABELS = {"counting": torch.ones(1, 1, 8, 8), "classification": torch.tensor([0, 1])}


def made(name, widths=(3, 6), kind="counting", **options):
    """The recipe, for one pair of taps of so many channels in student and teacher."""
    torch.manual_seed(0)
    options = Distill(**options)
    taps = [Tap("last", "last", widths[1], widths[0])]
    return find_recipe(name)(taps, options, OBJECTIVES[kind](options, LABELS[kind]))


def seen(student, teacher, photo=None):
    """A step's inputs with these maps of the last taps."""
    output = torch.zeros(len(student), 1)
    return LossInputs(output, output, output, [student], [teacher], photo=photo)


def drawn(shapes, seed=0, kind=torch.float64):
    """Random maps of student and teacher, rather positive ones."""
    generator = torch.Generator().manual_seed(seed)
    return tuple((torch.randn(s, generator=generator) + 0.3).to(kind) for s in shapes)


def pooled(maps):
    """The embeddings that the recipes compare, by numpy."""
    maps = np.asarray(maps)
    if maps.ndim == 3:
        return maps.mean(1)
    return maps.reshape(*maps.shape[:2], -1).mean(2)


def check_relations(recipe):
    """What a comparison of a batch's images promises."""
    maps = drawn(MAPS["maps"])
    terms = recipe.extra(seen(*maps))
    assert all(value.item() > 0 for value in terms.values())
    teacher = maps[1]
    for value in recipe.extra(seen(teacher, teacher)).values():
        assert value.item() == pytest.approx(0, abs=1e-9)
    order = torch.tensor([3, 0, 4, 2, 1])
    for name, value in recipe.extra(seen(*(m[order] for m in maps))).items():
        assert value.item() == pytest.approx(terms[name].item(), rel=1e-9)
    for name, value in recipe.extra(seen(3 * maps[0], 0.5 * teacher)).items():
        assert value.item() == pytest.approx(terms[name].item(), rel=1e-6)


def check_precision(recipe):
    """bfloat16 maps, also with a float32 student, are near float64; dead ones are harmless."""
    maps = [each.bfloat16() for each in drawn(MAPS["maps"])]
    exact = recipe.extra(seen(*(each.double() for each in maps)))
    for student in (maps[0], maps[0].float()):
        student = student.clone().requires_grad_()
        terms = recipe.extra(seen(student, maps[1]))
        for name, value in terms.items():
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(exact[name].item(), rel=2e-2)
        sum(terms.values()).backward()
        assert student.grad.isfinite().all()
        assert student.grad.any()
    for dead in (torch.zeros(5, 3, 3, 5), torch.ones(5, 3, 3, 5)):
        student = dead.requires_grad_()
        terms = recipe.extra(seen(student, maps[1].float()))
        sum(terms.values()).backward()
        assert all(value.isfinite() for value in terms.values())
        assert student.grad.isfinite().all()
        assert student.grad.abs().max() < 1e4
    student = maps[0].float().requires_grad_()
    terms = recipe.extra(seen(student, torch.zeros(5, 6, 3, 5)))
    sum(terms.values()).backward()
    assert all(value.isfinite() for value in terms.values())
    assert student.grad.isfinite().all()


def check_gradients(recipe):
    """Against finite differences in float64."""
    student, teacher = drawn(((3, 2, 2, 3), (3, 4, 2, 3)))

    def loss(maps):
        return sum(recipe.extra(seen(maps, teacher)).values())

    assert torch.autograd.gradcheck(loss, student.requires_grad_())


def check_alone(recipe):
    """One image has no relation to others: 0, and no gradient."""
    student, teacher = drawn(((1, 3, 2, 2), (1, 6, 2, 2)))
    terms = recipe.extra(seen(student.requires_grad_(), teacher))
    assert all(value.item() == pytest.approx(0, abs=1e-12) for value in terms.values())
    sum(terms.values()).backward()
    assert student.grad.abs().max() < 1e-9
