"""rkd: distances and angles, against float64 and released code."""

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


def _smooth(gap):
    return gap * gap / 2 if abs(gap) < 1 else abs(gap) - 0.5


def _distances(vectors):
    images = range(len(vectors))
    table = np.array([[np.linalg.norm(vectors[i] - vectors[j]) for j in images] for i in images])
    positive = table[table > 0]
    return table / positive.mean() if len(positive) else table


def _angle(i, j, k):
    a, b = i - j, k - j
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / lengths if lengths > 0 else 0.0


def _by_formula(student, teacher):
    student, teacher = pooled(student), pooled(teacher)
    gaps = (_distances(student) - _distances(teacher)).ravel()
    images = range(len(student))
    triples = [(i, j, k) for i in images for j in images for k in images]
    turns = [
        _angle(*(student[n] for n in triple)) - _angle(*(teacher[n] for n in triple))
        for triple in triples
    ]
    return np.mean([_smooth(g) for g in gaps]), np.mean([_smooth(t) for t in turns])


@pytest.mark.parametrize("shapes", MAPS.values(), ids=MAPS)
def test_it_is_its_formula(shapes):
    maps = drawn(shapes)
    terms = made("rkd").extra(seen(*maps))
    distance, angle = _by_formula(*maps)
    assert terms["rkd_distance"].item() == pytest.approx(distance, rel=1e-9, abs=1e-14)
    assert terms["rkd_angle"].item() == pytest.approx(angle, rel=1e-9, abs=1e-14)


def test_it_promises_what_relations_do():
    recipe = made("rkd")
    check_relations(recipe)
    check_precision(recipe)
    check_gradients(recipe)
    check_alone(recipe)


def test_embeddings_turned_and_moved_are_as_far_apart():
    student, teacher = drawn(MAPS["vectors"])
    turn, _ = torch.linalg.qr(drawn(((5, 5),) * 2, 1)[0])
    plain, moved = (
        made("rkd").extra(seen(vectors, teacher)) for vectors in (student, 2 * student @ turn + 7)
    )
    for name, value in plain.items():
        assert moved[name].item() == pytest.approx(value.item(), rel=1e-7)


def test_angles_that_are_off_are_not_computed():
    recipe = made("rkd", weights={"rkd_angle": 0.0})
    assert set(recipe.extra(seen(*drawn(MAPS["maps"])))) == {"rkd_distance"}


@pytest.mark.parametrize("name", ["distance", "angle", "both", "released-weights"])
def test_it_is_the_released_code(name):
    case = load("rkd")["cases"][name]
    weights = {"rkd_distance": case["hyper"]["dist_factor"]}
    weights |= {"rkd_angle": case["hyper"]["angle_factor"]}
    recipe = made("rkd", weights=weights)
    student = case["inputs"]["student"].requires_grad_()  # flattened there
    terms = recipe.extra(seen(student.flatten(1), case["inputs"]["teacher"]))
    loss = sum(weights[name] * term for name, term in terms.items())
    assert loss.item() == pytest.approx(case["value"], rel=1e-10)
    loss.backward()
    assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-7, atol=1e-10)


def test_equal_images_have_no_distance_as_they_have_in_the_released_code():
    fixture = load("rkd")
    differs = fixture["differs"][2]
    inputs = fixture["cases"]["distance"]["inputs"]
    student = inputs["student"].flatten(1)
    student[2] = student[0]
    student.requires_grad_()
    terms = made("rkd").extra(seen(student, inputs["teacher"]))
    assert terms["rkd_distance"].item() == pytest.approx(differs["expected"], rel=1e-9)
    assert abs(terms["rkd_distance"].item() - differs["theirs"]) > 0.01
    sum(terms.values()).backward()
    assert student.grad.abs().max() < 10
