"""logit-std: against float64 loops, torchdistill's values, and what standardizing promises."""

import math

import numpy as np
import pytest
import torch
from class_recipes import in_type, inputs, logits, recipe
from recipe_fixtures import load

from kdcompile.core.errors import KDError


def _loss(student, teacher, temperature=4.0):
    given = inputs(student, teacher, torch.zeros(len(student), dtype=torch.int64))
    return recipe("logit-std", temperature=temperature).extra(given)["logitstd"]


def _by_hand(student, teacher, temperature):
    """Row by row, probability by probability."""
    total = 0.0
    for rows in zip(student.numpy(), teacher.numpy(), strict=True):
        p, q = (
            np.exp((row - row.mean()) / np.std(row, ddof=1) / temperature)
            / np.exp((row - row.mean()) / np.std(row, ddof=1) / temperature).sum()
            for row in rows
        )
        total += sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (2, 3), (7, 11)])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_it_is_the_formula(rows, classes, temperature):
    student, teacher, _ = logits(rows, classes)
    found = _loss(student, teacher, temperature).item()
    assert found == pytest.approx(_by_hand(student, teacher, temperature), rel=1e-9, abs=1e-12)


def test_it_is_torchdistills_where_that_is_right():
    fixture = load("logit-std")
    soft, labels = (fixture["cases"][name] for name in ("soft", "labels"))
    pair = soft["inputs"]["student"].requires_grad_(), soft["inputs"]["teacher"]
    loss = _loss(*pair, soft["hyper"]["temperature"])
    assert loss.item() == pytest.approx(soft["value"], rel=1e-6)
    loss.backward()
    assert torch.allclose(pair[0].grad, soft["gradients"]["student"], rtol=1e-5, atol=1e-8)
    hyper = labels["hyper"]
    cross = torch.nn.functional.cross_entropy(pair[0], labels["inputs"]["labels"])
    total = hyper["alpha"] * cross + hyper["beta"] * loss
    assert total.item() == pytest.approx(labels["value"], rel=1e-6)


def test_the_temperatures_square_is_never_left_out():
    """Where torchdistill forgets it: without labels, or with alpha 0."""
    fixture = load("logit-std")
    without = next(d for d in fixture["differs"] if "no tau^2" in d["what"])
    case = fixture["cases"]["soft"]
    loss = _loss(case["inputs"]["student"], case["inputs"]["teacher"], 2.0).item()
    assert loss == pytest.approx(without["expected"], rel=1e-6)
    assert loss == pytest.approx(4 * without["theirs"], rel=1e-6)


def test_the_gradient():
    student, teacher, _ = logits(3, 5)
    assert torch.autograd.gradcheck(lambda s: _loss(s, teacher), student.requires_grad_())


def test_scale_and_shift_of_either_are_not_learned():
    student, teacher, _ = logits(6, 5)
    loss = _loss(student, teacher)
    assert torch.allclose(_loss(3 * student + 2, 0.1 * teacher - 7), loss)
    assert _loss(teacher, teacher).item() == pytest.approx(0, abs=1e-12)
    assert torch.allclose(_loss(student[[5, 1, 0, 3, 2, 4]], teacher[[5, 1, 0, 3, 2, 4]]), loss)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert torch.allclose(_loss(student[:, order], teacher[:, order]), loss)


def test_unrelated_logits_lose_about_one_at_any_scale_and_temperature():
    student, teacher, _ = logits(4000, 20)
    for temperature in (4.0, 20.0):
        assert _loss(50 * student, teacher, temperature).item() == pytest.approx(1, abs=0.1)


def test_bf16_constants_and_a_single_class():
    student, teacher, labels = logits(6, 5)
    exact = _loss(student, teacher).item()
    half = recipe("logit-std").extra(in_type(inputs(student, teacher, labels), torch.bfloat16))
    assert half["logitstd"].dtype == torch.float32
    assert half["logitstd"].item() == pytest.approx(exact, rel=0.05)
    for flat in (torch.zeros(2, 5), torch.full((2, 5), 3.0), torch.zeros(2, 1)):
        flat = flat.requires_grad_()
        loss = _loss(flat, torch.randn(flat.shape))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(flat.grad).all()
    assert _loss(torch.zeros(2, 1), torch.ones(2, 1)).item() == 0


def test_terms_and_task():
    student, teacher, labels = logits(3, 5)
    for reduction in ("mean", "paper"):
        made = recipe("logit-std", reduction=reduction)
        assert made.weights == {"hard": 0.1, "logitstd": 9.0}
        assert set(made.terms(inputs(student, teacher, labels))) == set(made.weights)
    with pytest.raises(KDError) as error:
        recipe("logit-std", "counting")
    assert error.value.code == "recipe-task"
    assert "not counting: its loss standardizes the logits of classes" in error.value.message
