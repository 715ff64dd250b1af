"""dist: against numpy's correlations, torchdistill's values, and flat rows and columns."""

import numpy as np
import pytest
import torch
from class_recipes import in_type, inputs, logits, recipe
from recipe_fixtures import load

from kdcompile.core.errors import KDError


def _terms(student, teacher, **options):
    given = inputs(student, teacher, torch.zeros(len(student), dtype=torch.int64))
    terms = recipe("dist", **options).extra(given)
    assert list(terms) == ["inter_class", "intra_class"]
    return torch.stack(list(terms.values()))


def _probabilities(rows, temperature):
    e = np.exp(rows.numpy() / temperature)
    return e / e.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("rows", "classes"), [(2, 3), (7, 11), (5, 2)])
def test_it_is_the_formula(rows, classes, temperature):
    student, teacher, _ = logits(rows, classes)
    p, q = (_probabilities(each, temperature) for each in (student, teacher))
    inter = np.mean([1 - np.corrcoef(p[i], q[i])[0, 1] for i in range(rows)])
    intra = np.mean([1 - np.corrcoef(p[:, k], q[:, k])[0, 1] for k in range(classes)])
    assert _terms(student, teacher, temperature=temperature).tolist() == pytest.approx(
        [inter, intra], rel=1e-9
    )
    paper = _terms(student, teacher, temperature=temperature, reduction="paper")
    assert paper.tolist() == pytest.approx([temperature**2 * inter, temperature**2 * intra])


@pytest.mark.parametrize("name", ["default", "weighted"])
def test_it_is_torchdistills(name):
    case = load("dist")["cases"][name]
    student, hyper = case["inputs"]["student"].requires_grad_(), case["hyper"]
    weights = torch.tensor([hyper["beta"], hyper["gamma"]], dtype=torch.float64)
    terms = _terms(student, case["inputs"]["teacher"], temperature=hyper["tau"], reduction="paper")
    loss = weights @ terms
    assert loss.item() == pytest.approx(case["value"], rel=1e-6)
    loss.backward()
    assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-5, atol=1e-8)


def test_a_batch_of_one_has_no_columns_to_compare():
    """torchdistill adds the constant 1 there."""
    fixture = load("dist")
    differs = next(d for d in fixture["differs"] if "a batch of one" in d["what"])
    given = fixture["cases"]["default"]["inputs"]
    terms = _terms(given["student"][:1], given["teacher"][:1], temperature=1.0)
    assert terms[1].item() == 0
    assert differs["theirs"] - differs["expected"] == pytest.approx(1)


def test_a_flat_student_is_worth_one_and_has_a_bounded_gradient():
    """torchdistill's is of the size 1 / eps: one fresh row drowns the batch."""
    fixture = load("dist")
    differs = next(d for d in fixture["differs"] if "all equal" in d["what"])
    given = fixture["cases"]["default"]["inputs"]
    student = given["student"].clone()
    student[1] = 0.5
    terms = _terms(student.requires_grad_(), given["teacher"], temperature=1.0)
    assert terms.sum().item() == pytest.approx(differs["value"], rel=1e-6)
    terms.sum().backward()
    assert student.grad[1].abs().max() < 1e-3 * differs["theirs"]
    assert student.grad[1].abs().max() > 1


def test_a_flat_teacher_teaches_nothing():
    student, teacher, _ = logits(4, 5)
    student.requires_grad_()
    teacher[2] = 1.0
    rows = _terms(student, teacher)[0]
    kept = [0, 1, 3]
    assert rows.item() == pytest.approx(0.75 * _terms(student[kept], teacher[kept])[0].item())
    zero = _terms(student, torch.zeros_like(teacher))
    zero.sum().backward()
    assert zero.tolist() == [0, 0]
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("which", [0, 1])
def test_the_gradients(which):
    student, teacher, _ = logits(3, 4)
    assert torch.autograd.gradcheck(lambda s: _terms(s, teacher)[which], student.requires_grad_())


def test_invariants():
    student, teacher, _ = logits(6, 5)
    terms = _terms(student, teacher)
    assert _terms(teacher, teacher).abs().max() < 1e-12
    assert torch.allclose(_terms(student + 3, teacher - 2), terms)
    rows, columns = torch.randperm(6), torch.randperm(5)
    assert torch.allclose(_terms(student[rows], teacher[rows]), terms)
    assert torch.allclose(_terms(student[:, columns], teacher[:, columns]), terms)
    student, teacher, _ = logits(3000, 20)
    assert _terms(student, teacher).tolist() == pytest.approx([1, 1], abs=0.1)


def test_bf16_zeros_and_a_single_class():
    student, teacher, labels = logits(6, 5)
    exact = _terms(student, teacher)
    half = recipe("dist").extra(in_type(inputs(student, teacher, labels), torch.bfloat16))
    assert all(term.dtype == torch.float32 for term in half.values())
    assert [t.item() for t in half.values()] == pytest.approx(exact.tolist(), rel=0.05)
    for shape in ((3, 5), (1, 5), (3, 1)):
        flat = torch.zeros(shape, requires_grad=True)
        terms = _terms(flat, torch.randn(shape))
        terms.sum().backward()
        assert torch.isfinite(terms).all()
        assert torch.isfinite(flat.grad).all()


def test_terms_and_task():
    student, teacher, labels = logits(3, 5)
    for reduction, weight in (("mean", 1.0), ("paper", 0.2)):
        made = recipe("dist", reduction=reduction)
        assert made.weights == {"hard": 0.1, "inter_class": weight, "intra_class": weight}
        assert set(made.terms(inputs(student, teacher, labels))) == set(made.weights)
    with pytest.raises(KDError) as error:
        recipe("dist", "regression")
    assert error.value.code == "recipe-task"
