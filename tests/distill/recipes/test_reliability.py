"""reliability: the weight of each image, its soft term in every task, a corrupted teacher."""

import math

import numpy as np
import pytest
import torch
from class_recipes import in_type, inputs, logits, recipe
from recipe_fixtures import load

from kdcompile.config.distill import Distill
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.taps import Tap


def _densities(batch, side, seed=0):
    random = torch.Generator().manual_seed(seed)
    student, teacher, target = (torch.rand(batch, 1, *side, generator=random) for _ in range(3))
    return student.double(), teacher.double(), target.double()


def _reliable(made, student, teacher, target):
    return made.extra(inputs(student, teacher, target))["reliable"]


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (2, 3), (9, 14)])
def test_classes_weigh_by_the_rank_of_the_label(rows, classes):
    student, teacher, labels = logits(rows, classes)
    total, weights = 0.0, []
    for s, t, label in zip(student.numpy(), teacher.numpy(), labels.tolist(), strict=True):
        p, q = (np.exp(r / 4) / np.exp(r / 4).sum() for r in (s, t))
        rank = 1 + list(np.argsort(-t)).index(label)
        weights.append(1 / rank if rank <= 10 else 0.0)
        total += weights[-1] * 16 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    made = recipe("reliability")
    assert made.trust(teacher, labels).tolist() == pytest.approx(weights)
    found = _reliable(made, student, teacher, labels)
    assert found.item() == pytest.approx(total / rows, rel=1e-6)


@pytest.mark.parametrize("side", [(1, 1), (3, 5), (8, 8)])
@pytest.mark.parametrize("batch", [1, 3])
def test_counts_weigh_by_their_error_in_counts_of_a_mean_crop(batch, side):
    student, teacher, target = _densities(batch, side)
    many = _densities(20, side, seed=5)[2]
    total = 0.0
    for s, t, y in zip(student.numpy(), teacher.numpy(), target.numpy(), strict=True):
        mean_count = np.mean([each.sum() for each in many.numpy()])
        weight = math.exp(-abs(t.sum() - y.sum()) / mean_count)
        total += weight * np.mean((s - t) ** 2) / np.mean(many.numpy() ** 2)
    made = recipe("reliability", "counting", targets=many)
    found = _reliable(made, student, teacher, target)
    assert found.item() == pytest.approx(total / batch, rel=1e-9)


@pytest.mark.parametrize(("hard", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("batch", [1, 5])
def test_values_weigh_by_their_error_in_deviations_of_the_labels(hard, power, batch):
    student, teacher, _ = logits(batch, 1)
    target, labels = logits(batch, 1, seed=1)[0], 3 * logits(30, 1, seed=2)[0]
    scale = np.std(labels.numpy())
    rows = [
        math.exp(-abs(t - y) / scale) * (abs(s - t) / scale) ** power
        for s, t, y in zip(*(v.flatten().tolist() for v in (student, teacher, target)), strict=True)
    ]
    made = recipe("reliability", "regression", targets=labels, hard=hard)
    found = _reliable(made, student, teacher, target)
    assert found.item() == pytest.approx(np.mean(rows), rel=1e-6)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_weights_are_the_authors(k, monkeypatch):
    case = load("reliability")["cases"][f"top-{k}"]
    monkeypatch.setattr("kdcompile.distill.recipes.reliability.RANKS", k)
    trust = recipe("reliability").trust(case["inputs"]["teacher"], case["inputs"]["labels"])
    assert torch.allclose(trust, case["values"]["rows"].to(trust.dtype))
    assert trust.mean().item() == pytest.approx(case["value"])


def test_a_perfect_teacher_is_kd_and_a_useless_one_is_nothing():
    student, _, labels = logits(8, 15)
    perfect = 9 * torch.nn.functional.one_hot(labels, 15).double()
    made, kd = recipe("reliability"), recipe("kd")
    assert made.trust(perfect, labels).tolist() == [1] * 8
    soft = kd.terms(inputs(student, perfect, labels))["soft"]
    assert _reliable(made, student, perfect, labels).item() == pytest.approx(soft.item(), rel=1e-6)
    useless = -perfect + 1e-3 * torch.arange(15)
    student.requires_grad_()
    loss = _reliable(made, student, useless, labels)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() == 0


@pytest.mark.parametrize("kind", ["counting", "regression"])
def test_the_same_of_counts_and_values(kind):
    if kind == "counting":
        student, _, target = _densities(4, (3, 2))
    else:
        student, _, _ = logits(4, 1)
        target = logits(4, 1, seed=1)[0]
    made, kd = (recipe(name, kind, targets=target) for name in ("reliability", "kd"))
    soft = kd.terms(inputs(student, target, target))["soft"]
    assert _reliable(made, student, target, target).item() == pytest.approx(soft.item(), rel=1e-6)
    assert made.trust(target + 1e3, target).max() < 1e-12
    off = [made.trust(target + error, target).mean().item() for error in (0.0, 0.1, 0.5, 2.0)]
    assert off == sorted(off, reverse=True)
    assert off[0] == 1


def test_a_corrupted_teacher_pulls_less_than_in_kd():
    """On the images that it gets wrong its pull falls to the weight; on the others it stays."""
    student, teacher, labels = logits(6, 12)
    teacher = teacher.scatter(1, labels.unsqueeze(1), 30.0)  # right ...
    teacher[:2] = teacher[:2].neg()  # ... but for two, where the label comes last
    grads = []
    for name, term in (("kd", "soft"), ("reliability", "reliable")):
        own = student.clone().requires_grad_()
        recipe(name).terms(inputs(own, teacher, labels))[term].backward()
        grads.append(own.grad)
    assert torch.allclose(grads[0][2:], grads[1][2:], rtol=1e-5)
    assert grads[0][:2].abs().max() > 0
    assert grads[1][:2].abs().max() == 0


def test_paper_weighs_the_batch_by_its_mean():
    student, teacher, labels = logits(5, 14)
    made = recipe("reliability", reduction="paper")
    soft = recipe("kd").terms(inputs(student, teacher, labels))["soft"]
    mean = made.trust(teacher, labels).mean()
    loss = _reliable(made, student, teacher, labels)
    assert loss.item() == pytest.approx((mean * soft).item(), rel=1e-6)
    student, teacher, target = _densities(3, (4, 4))
    made, kd = (recipe(n, "counting", reduction="paper") for n in ("reliability", "kd"))
    soft = kd.terms(inputs(student, teacher, target))["soft"]
    mean = made.trust(teacher, target).mean()
    loss = _reliable(made, student, teacher, target)
    assert loss.item() == pytest.approx((mean * soft).item(), rel=1e-6)


@pytest.mark.parametrize("kind", ["classification", "counting", "regression"])
def test_the_gradients(kind):
    student, teacher, target = {
        "classification": lambda: logits(3, 5),
        "counting": lambda: _densities(2, (3, 2)),
        "regression": lambda: (*logits(3, 1)[:2], logits(3, 1, seed=1)[0]),
    }[kind]()
    made = recipe("reliability", kind, targets=target)
    assert torch.autograd.gradcheck(
        lambda s: _reliable(made, s, teacher, target), student.requires_grad_()
    )


def test_invariants_and_ties():
    student, teacher, labels = logits(6, 5)
    made = recipe("reliability")
    loss = _reliable(made, student, teacher, labels)
    order = torch.randperm(6)
    assert torch.allclose(_reliable(made, student[order], teacher[order], labels[order]), loss)
    assert _reliable(made, teacher, teacher, labels).item() == pytest.approx(0, abs=1e-12)
    tied = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    assert made.trust(tied, torch.tensor([2])).item() == 1
    assert made.trust(tied, torch.tensor([0])).item() == pytest.approx(1 / 3)


def test_bf16_and_zeros():
    cases = {
        "classification": logits(6, 5),
        "counting": _densities(3, (4, 4)),
        "regression": (*logits(6, 1)[:2], logits(6, 1, seed=1)[0]),
    }
    for kind, given in cases.items():
        made = recipe("reliability", kind, targets=given[2])
        exact = _reliable(made, *given).item()
        half = made.extra(in_type(inputs(*given), torch.bfloat16))["reliable"]
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(exact, rel=0.1)
        flat = torch.zeros_like(given[0], requires_grad=True)
        loss = _reliable(made, flat, torch.zeros_like(flat), given[2])
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(flat.grad).all()


@pytest.mark.parametrize("kind", ["classification", "counting", "regression"])
@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_its_weight_is_that_of_soft_in_kd(kind, reduction):
    targets = torch.rand(4, 1)
    own = recipe("reliability", kind, targets=targets, reduction=reduction).weights
    soft = recipe("kd", kind, targets=targets, reduction=reduction).weights
    assert own == {"reliable" if name == "soft" else name: w for name, w in soft.items()}


def test_combined_it_keeps_the_tasks_weight():
    options = Distill(weights={"intra": 5.0})
    objective = OBJECTIVES["counting"](options, torch.rand(4, 1, 8, 8))
    both = find_recipe("skt+reliability")([Tap("a", "a", 4, 2)], options, objective)
    assert both.weights == {"hard": 1, "count": 1, "reliable": 4, "intra": 5, "inter": 10}
