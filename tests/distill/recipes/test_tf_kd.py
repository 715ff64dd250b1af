"""tf-kd: against float64 loops, the released code's values, and its labels."""

import math

import numpy as np
import pytest
import torch
from class_recipes import in_type, inputs, logits, recipe
from recipe_fixtures import load

from kdcompile.core.errors import KDError


def _loss(student, labels, **options):
    return recipe("tf-kd", **options).extra(inputs(student, None, labels))["tfkd"]


def _kl(q, p):
    return sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))


def _softmax(row):
    return np.exp(row) / np.exp(row).sum()


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (2, 3), (7, 11)])
def test_it_is_the_formula(rows, classes, temperature):
    student, _, labels = logits(rows, classes)
    softened, released = 0.0, 0.0
    for row, label in zip(student.numpy(), labels.tolist(), strict=True):
        u = [0.99 if k == label else 0.01 / (classes - 1) for k in range(classes)]
        root = np.array(u) ** (1 / temperature)
        softened += temperature**2 * _kl(root / root.sum(), _softmax(row / temperature)) / rows
        released += _kl(_softmax(np.array(u) / temperature), _softmax(row)) / rows
    found = _loss(student, labels, temperature=temperature)
    assert found.item() == pytest.approx(softened, rel=1e-9)
    paper = _loss(student, labels, temperature=temperature, reduction="paper")
    assert paper.item() == pytest.approx(released, rel=1e-9)


def test_paper_is_the_authors_regularisation():
    case = load("tf-kd")["cases"]["reg"]
    student, labels, hyper = case["inputs"]["student"], case["inputs"]["labels"], case["hyper"]
    student.requires_grad_()
    own = _loss(student, labels, temperature=hyper["temperature"], reduction="paper")
    cross = torch.nn.functional.cross_entropy(student, labels)
    loss = (1 - hyper["alpha"]) * cross + hyper["alpha"] * own
    assert loss.item() == pytest.approx(case["value"], rel=1e-6)
    loss.backward()
    assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-5, atol=1e-8)


def test_it_is_neither_a_norm_nor_tuned_by_the_number_of_classes():
    """torchdistill's RegularizationLoss, and the released mean over classes."""
    cases = load("tf-kd")["cases"]
    case = cases["reg-released"]
    student, labels, hyper = case["inputs"]["student"], case["inputs"]["labels"], case["hyper"]
    own = _loss(student, labels, temperature=hyper["temperature"], reduction="paper")
    cross = torch.nn.functional.cross_entropy(student, labels)
    theirs = hyper["multiplier"] / student.shape[1]
    total = (1 - hyper["alpha"]) * cross + hyper["alpha"] * theirs * own
    assert total.item() == pytest.approx(case["value"], rel=1e-6)
    assert own.item() != pytest.approx(cases["norm-p1"]["value"], rel=0.1)


def test_the_gradient():
    student, _, labels = logits(3, 5)
    for reduction in ("mean", "paper"):
        assert torch.autograd.gradcheck(
            lambda s, by=reduction: _loss(s, labels, reduction=by), student.requires_grad_()
        )


def test_the_virtual_teacher_itself_loses_nothing():
    labels = torch.tensor([2, 0])
    u = torch.full((2, 4), 0.01 / 3, dtype=torch.float64)
    u[[0, 1], labels] = 0.99
    for temperature in (1.0, 4.0):
        assert _loss(u.log(), labels, temperature=temperature).item() == pytest.approx(0, abs=1e-12)
    assert _loss(u.log(), labels.flip(0)).item() > 1
    order = torch.tensor([1, 0])
    student, _, _ = logits(2, 4)
    assert torch.allclose(_loss(student[order], labels[order]), _loss(student, labels))


def test_bf16_zeros_and_a_single_class():
    student, _, labels = logits(6, 5)
    half = recipe("tf-kd").extra(in_type(inputs(student, None, labels), torch.bfloat16))["tfkd"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(_loss(student, labels).item(), rel=0.02)
    for shape in ((3, 5), (1, 2), (2, 1)):
        flat = torch.zeros(shape, requires_grad=True)
        loss = _loss(flat, torch.zeros(shape[0], dtype=torch.int64))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(flat.grad).all()


def test_terms_task_and_no_teacher():
    student, _, labels = logits(3, 5)
    made = recipe("tf-kd")
    assert not made.needs_teacher
    assert made.weights == {"hard": 0.1, "tfkd": 0.9}
    assert set(made.terms(inputs(student, None, labels))) == set(made.weights)
    published = recipe("tf-kd", reduction="paper").weights
    assert published["tfkd"] / published["hard"] == pytest.approx(0.1 / 0.9)
    with pytest.raises(KDError) as error:
        recipe("tf-kd", "counting")
    assert error.value.code == "recipe-task"
