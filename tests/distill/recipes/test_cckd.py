"""cckd: correlations through a kernel, against float64 and the paper's formula."""

import math

import numpy as np
import pytest
import torch
from recipe_fixtures import load
from relation_recipes import (
    MAPS,
    check_gradients,
    check_precision,
    check_relations,
    drawn,
    made,
    pooled,
    seen,
)

from kdcompile.distill.recipes.cckd import gaussian

BOTH = {"cckd": 1.0, "cckd_bilinear": 1.0}


def _by_formula(student, teacher, kernel):
    """The mean over pairs of the squared difference of the kernel of cosines."""
    total, images = 0.0, len(student)
    for i in range(images):
        for j in range(images):
            found = []
            for vectors in (pooled(student), pooled(teacher)):
                a, b = vectors[i], vectors[j]
                found.append(kernel(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b))))
            total += (found[0] - found[1]) ** 2
    return total / images**2


def _series(cosine):
    return math.exp(-0.8) * (1 + 0.8 * cosine + 0.32 * cosine**2)


@pytest.mark.parametrize("reduction", ["mean", "paper"])
@pytest.mark.parametrize("shapes", MAPS.values(), ids=MAPS)
def test_it_is_its_formula(shapes, reduction):
    maps = drawn(shapes)
    terms = made("cckd", reduction=reduction, weights=BOTH).extra(seen(*maps))
    assert terms["cckd"].item() == pytest.approx(_by_formula(*maps, _series), rel=1e-9)
    bilinear = _by_formula(*maps, lambda cosine: cosine)
    assert terms["cckd_bilinear"].item() == pytest.approx(bilinear, rel=1e-9)


def test_it_promises_what_relations_do():
    recipe = made("cckd", weights=BOTH)
    check_relations(recipe)
    check_precision(recipe)
    check_gradients(recipe)


def test_a_kernel_is_on_by_its_weight():
    maps = drawn(MAPS["maps"])
    assert set(made("cckd").extra(seen(*maps))) == {"cckd"}
    plain = made("cckd", weights={"cckd": 0.0, "cckd_bilinear": 2.0})
    assert set(plain.extra(seen(*maps))) == {"cckd_bilinear"}


def test_the_series_is_near_the_gaussian_for_vectors_of_length_1():
    cosine = torch.linspace(-1, 1, 101, dtype=torch.float64)
    exact = (-0.4 * (2 - 2 * cosine)).exp()
    assert (gaussian(cosine) - exact).abs().max() < 0.05


def test_it_follows_the_paper_and_not_the_released_code():
    """torchdistill takes the norm of the difference, not squared."""
    cases = load("cckd")["cases"]
    case, wrong = cases["gaussian-unit-squared"], cases["gaussian-unit-norm"]
    student, teacher = (case["inputs"][n] for n in ("student", "teacher"))
    loss = made("cckd").extra(seen(student.requires_grad_(), teacher))["cckd"]
    assert loss.item() == pytest.approx(case["value"], rel=1e-5)  # lengths are 1 to 6 digits
    assert not wrong["right"]
    assert abs(loss.item() / wrong["value"] - 1) > 0.04
    loss.backward()
    theirs = case["gradients"]["student"]  # without the normalisation: what is left is tangential
    rows = student.detach() / student.detach().norm(dim=1, keepdim=True)
    tangential = theirs - (theirs * rows).sum(1, keepdim=True) * rows
    assert torch.allclose(student.grad, tangential, rtol=1e-4, atol=1e-6)


def test_lengths_do_not_matter_as_they_do_in_the_released_code():
    case = load("cckd")["cases"]["gaussian-squared"]
    student, teacher = (case["inputs"][n] for n in ("student", "teacher"))
    loss = made("cckd").extra(seen(student, teacher))["cckd"].item()
    unit = made("cckd").extra(seen(*(m / m.norm(dim=1, keepdim=True) for m in (student, teacher))))
    assert loss == pytest.approx(unit["cckd"].item(), rel=1e-9)
    assert loss < case["value"] / 100
