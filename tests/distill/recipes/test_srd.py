"""srd: against numpy, torchdistill's values, equal features and the projection's start."""

import math

import numpy as np
import pytest
import torch
from class_recipes import in_type, inputs, logits, recipe
from recipe_fixtures import load

from kdcompile.kernels.kd_kl import kd_kl


def _maps(batch, channels, side, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *side, generator=random).relu().double()


def _given(student, teacher):
    return inputs(*logits(len(student), 3), [student], [teacher])


def _recipe(widths, **options):
    return recipe("srd", taps=[widths], **options)


def _identity(width, **options):
    made = _recipe((width, width), **options)
    with torch.no_grad():
        made.projection.weight.copy_(torch.eye(width))
    return made


def _mean_fourth_power(student, teacher, weight):
    """Mean over images and columns, of columns normalised one by one."""
    s = np.array([[maps.mean() for maps in image] for image in student.numpy()]) @ weight.numpy().T
    t = np.array([[maps.mean() for maps in image] for image in teacher.numpy()])
    powers = []
    for k in range(t.shape[1]):
        a, b = (
            (column - column.mean()) / math.sqrt(column.var() + 1e-4)
            for column in (s[:, k], t[:, k])
        )
        powers.append(np.abs(a - b) ** 4)
    return np.mean(powers), np.size(powers)


@pytest.mark.parametrize(
    ("batch", "own", "theirs", "side"),
    [(2, 3, 5, (4, 3)), (6, 5, 5, (1, 1)), (5, 1, 2, (3, 1)), (4, 2, 1, (7, 5))],
)
def test_it_is_the_formula(batch, own, theirs, side):
    student, teacher = _maps(batch, own, side), _maps(batch, theirs, side, seed=1)
    for reduction in ("mean", "paper"):
        made = _recipe((theirs, own), reduction=reduction)
        mean, count = _mean_fourth_power(student, teacher, made.projection.weight.detach())
        expected = math.log((mean + 1e-8) * count)
        if reduction == "mean":
            expected = math.log(mean / 1e-8 + 1) / math.log(12 / 1e-8)
        loss = made.extra(_given(student, teacher))["srd"]
        assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_it_is_torchdistills_of_the_normalised_features():
    """Its loss takes what the wrapper normalised; here 2 log + KL at temperature 1."""
    case = load("srd")["cases"]["power-4"]
    given = case["inputs"]
    ours = recipe("srd", taps=[(4, 4)], reduction="paper")
    gap = given["student"].requires_grad_() - given["teacher"]
    log = ours.log_power(gap)
    loss = 2 * log + kd_kl(given["student_logits"], given["teacher_logits"])
    assert loss.item() == pytest.approx(case["value"], rel=1e-6)
    loss.backward()
    assert torch.allclose(given["student"].grad, case["gradients"]["student"], rtol=1e-5)


def test_equal_features_lose_nothing_and_have_a_gradient():
    """torchdistill: log 0 and 0 / 0."""
    differs = next(d for d in load("srd")["differs"] if "equal" in d["what"])
    assert float(differs["theirs"]) == -math.inf
    maps = _maps(5, 3, (4, 4)).requires_grad_()
    made = _identity(3)
    loss = made.extra(_given(maps, maps.detach()))["srd"]
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert torch.isfinite(maps.grad).all()
    paper = _identity(3, reduction="paper").extra(_given(maps, maps.detach()))["srd"]
    assert torch.isfinite(paper)


def test_a_batch_given_twice_is_worth_the_same():
    """torchdistill's sum over the batch, within the logarithm, adds log 2."""
    student, teacher = _maps(5, 3, (2, 2)), _maps(5, 4, (2, 2), seed=1)
    twice = _given(torch.cat([student, student]), torch.cat([teacher, teacher]))
    for reduction, more in (("mean", 0.0), ("paper", math.log(2))):
        made = _recipe((4, 3), reduction=reduction)
        once = made.extra(_given(student, teacher))["srd"].item()
        assert made.extra(twice)["srd"].item() == pytest.approx(once + more, rel=1e-9)


def test_the_gradients():
    student, teacher = _maps(4, 3, (2, 2)), _maps(4, 2, (2, 2), seed=1)
    made = _recipe((2, 3))

    def loss(maps, weight):
        given = _given(maps, teacher)
        return torch.func.functional_call(made, {"projection.weight": weight}, given)["srd"]

    weight = made.projection.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), weight))


def test_invariants():
    student, teacher = _maps(64, 3, (2, 2)), _maps(64, 3, (2, 2), seed=1)
    made = _identity(3)
    loss = made.extra(_given(student, teacher))["srd"].item()
    order = torch.randperm(64)
    assert made.extra(_given(student[order], teacher[order]))["srd"].item() == pytest.approx(loss)
    scaled = _given(100 * student + 3, 50 * teacher - 1)
    assert made.extra(scaled)["srd"].item() == pytest.approx(loss, rel=1e-2)
    wide = [torch.randn(2000, 8, 1, 1, dtype=torch.float64) for _ in range(2)]
    assert _identity(8).extra(_given(*wide))["srd"].item() == pytest.approx(1, abs=0.02)


def test_the_projection_starts_at_the_least_squares_map():
    student = _maps(4, 3, (6, 5))
    mix = torch.tensor([[1.0, 2.0, 0.5], [0.0, 1.0, -1.0]], dtype=torch.float64)
    given = _given(student, torch.einsum("oc,nchw->nohw", mix, student) + 2)
    made = _recipe((2, 3))
    before = made.extra(given)["srd"].item()
    with torch.no_grad():
        made.fit(given)
    assert torch.allclose(made.projection.weight, mix, atol=2e-2)
    assert made.extra(given)["srd"].item() < 0.6 * before


def test_bf16_zeros_and_a_batch_of_one():
    student, teacher = _maps(6, 3, (4, 4)), _maps(6, 2, (4, 4), seed=1)
    made = _recipe((2, 3))
    exact = made.extra(_given(student, teacher))["srd"].item()
    half = made.float().extra(in_type(_given(student, teacher), torch.bfloat16))["srd"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact, rel=0.02)
    made.double()
    for batch in (1, 4):
        zeros = torch.zeros(batch, 3, 2, 2, dtype=torch.float64, requires_grad=True)
        loss = made.extra(_given(zeros, _maps(batch, 2, (2, 2))))["srd"]
        made.zero_grad()
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(zeros.grad).all()
        assert torch.isfinite(made.projection.weight.grad).all()


def test_terms_weights_and_the_adapter_learns():
    made = _recipe((2, 3))
    assert made.weights == {"hard": 0.1, "soft": 0.9, "srd": 4.0}
    assert made.needs == ("pairs",)
    terms = made(_given(_maps(6, 3, (4, 4)), _maps(6, 2, (4, 4), seed=1)))
    assert set(terms) == set(made.weights)
    sum(terms.values()).backward()
    assert made.projection.weight.grad.abs().min() > 0
    counting = recipe("srd", "counting", taps=[(2, 3)])
    assert counting.weights == {"hard": 1.0, "count": 1.0, "soft": 4.0, "srd": 4.0}
