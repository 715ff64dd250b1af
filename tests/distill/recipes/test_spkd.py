"""spkd: rows of the batch's Gram, against float64 and the paper's formula."""

import numpy as np
import pytest
import torch
from recipe_fixtures import load
from relation_recipes import (
    MAPS,
    check_alone,
    check_gradients,
    check_precision,
    check_relations,
    drawn,
    made,
    seen,
)


def _by_formula(student, teacher):
    """The squared differences of the rows, summed over the batch."""
    grams = []
    for maps in (student, teacher):
        flat = [np.asarray(m).ravel() for m in maps]
        rows = [np.array([np.dot(a, b) for b in flat]) for a in flat]
        grams.append([row / np.sqrt((row**2).sum()) for row in rows])
    return sum(((s - t) ** 2).sum() for s, t in zip(*grams, strict=True))


@pytest.mark.parametrize("shapes", MAPS.values(), ids=MAPS)
def test_it_is_its_formula(shapes):
    maps, images = drawn(shapes), shapes[0][0]
    expected = _by_formula(*maps)
    mean, paper = (made("spkd", reduction=r).extra(seen(*maps))["spkd"] for r in ("mean", "paper"))
    assert mean.item() == pytest.approx(expected / images, rel=1e-9)
    assert paper.item() == pytest.approx(expected / images**2, rel=1e-9)


def test_it_promises_what_relations_do():
    recipe = made("spkd")
    check_relations(recipe)
    check_precision(recipe)
    check_gradients(recipe)
    check_alone(recipe)


def test_it_follows_the_paper_and_not_the_released_code():
    """torchdistill divides the rows by the sum of their absolute values."""
    cases = load("spkd")["cases"]
    case, wrong = cases["row-l2"], cases["row-l1"]
    student = case["inputs"]["student"].requires_grad_()
    loss = made("spkd", reduction="paper").extra(seen(student, case["inputs"]["teacher"]))["spkd"]
    assert loss.item() == pytest.approx(case["value"], rel=1e-10)
    assert not wrong["right"]
    assert loss.item() > 1.5 * wrong["value"]
    loss.backward()
    assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-8, atol=1e-11)
