"""pkt: neighbours' probabilities, against float64 and released code."""

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
    pooled,
    seen,
)


def _by_formula(student, teacher):
    """The sum over i of KL between rows, over B."""
    rows = []
    for vectors in (pooled(student), pooled(teacher)):
        lengths = [np.sqrt((v * v).sum()) for v in vectors]
        kernel = [
            [(np.dot(v, w) / (a * b) + 1) / 2 for w, b in zip(vectors, lengths, strict=True)]
            for v, a in zip(vectors, lengths, strict=True)
        ]
        rows.append([np.array(row) / sum(row) for row in kernel])
    kls = [np.sum(t * np.log((t + 1e-7) / (s + 1e-7))) for s, t in zip(*rows, strict=True)]
    return np.mean(kls)


@pytest.mark.parametrize("shapes", MAPS.values(), ids=MAPS)
def test_it_is_its_formula(shapes):
    maps = drawn(shapes)
    expected = _by_formula(*maps)
    mean, paper = (made("pkt", reduction=r).extra(seen(*maps))["pkt"] for r in ("mean", "paper"))
    assert mean.item() == pytest.approx(expected, rel=1e-9)
    assert paper.item() == pytest.approx(expected / shapes[0][0], rel=1e-9)


def test_it_promises_what_relations_do():
    recipe = made("pkt")
    check_relations(recipe)
    check_precision(recipe)
    check_gradients(recipe)
    check_alone(recipe)


def test_it_is_the_released_code():
    """Which adds 1e-7 to the lengths too."""
    fixture = load("pkt")
    case = fixture["cases"]["default"]
    student = case["inputs"]["student"].requires_grad_()
    loss = made("pkt", reduction="paper").extra(seen(student, case["inputs"]["teacher"]))["pkt"]
    assert loss.item() == pytest.approx(case["value"], rel=1e-6)
    loss.backward()
    assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-5, atol=1e-8)
    by_rows = made("pkt").extra(seen(student, case["inputs"]["teacher"]))["pkt"]
    assert by_rows.item() == pytest.approx(fixture["differs"][0]["expected"], rel=1e-6)


def test_a_dead_image_has_a_gradient_where_the_released_code_has_nan():
    fixture = load("pkt")
    case, differs = fixture["cases"]["default"], fixture["differs"][1]
    assert differs["theirs"] == "nan"
    student = case["inputs"]["student"].clone()
    student[1] = 0
    student.requires_grad_()
    loss = made("pkt", reduction="paper").extra(seen(student, case["inputs"]["teacher"]))["pkt"]
    assert loss.item() == pytest.approx(differs["value"], rel=1e-6)
    loss.backward()
    assert student.grad.isfinite().all()
