"""class-relation: against float64 loops and the released code, and that old classes are kept."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from class_recipes import in_type, inputs, logits, recipe
from new_classes import NEW, OLD, SPEC, photos, project
from recipe_fixtures import load
from torch import nn

from kdcompile.config.load import load_spec
from kdcompile.core.errors import KDError
from kdcompile.core.user_code import load_factory
from kdcompile.data.photo import Photo
from kdcompile.distill.recipe import refuse_unmet
from kdcompile.distill.recipes.class_relation import old_class_weight
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.train import Trainer
from kdcompile.models.factory import load_weights

NAME, TERM = "class-relation", "class_relation"


def _given(rows=6, old=3, new=2):
    student, _, labels = logits(rows, old + new)
    return inputs(student, logits(rows, old, seed=5)[1], labels)


def _by_hand(student, teacher, temperature, reduction):
    """Photo by photo and class by class."""
    tau, known = 0.1 * temperature, teacher.shape[1]
    rows = []
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = ([math.exp(v / tau) for v in row] for row in (ours, theirs))
        inside = sum(p[:known])
        r, q = [v / inside for v in p[:known]], [v / sum(q) for v in q]
        cross = -sum(b * math.log(a) for a, b in zip(r, q, strict=True))
        entropy = -sum(b * math.log(b) for b in q)
        rows.append((inside / sum(p), cross - (entropy if reduction == "mean" else 0)))
    mean = sum(weight for weight, _ in rows) / len(rows)
    return temperature**2 * sum(w / mean * loss for w, loss in rows) / len(rows)


@pytest.mark.parametrize(("rows", "old", "new"), [(1, 2, 1), (2, 3, 1), (7, 5, 4), (3, 4, 0)])
@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_it_is_the_formula(rows, old, new, reduction):
    given = _given(rows, old, new)
    found = recipe(NAME, temperature=4.0, reduction=reduction).extra(given)[TERM].item()
    expected = _by_hand(given.student, given.teacher, 4.0, reduction)
    assert found == pytest.approx(expected, rel=1e-9)


def test_paper_is_the_released_code():
    case = load(NAME)["cases"]["released"]
    student = case["inputs"]["student"].requires_grad_()
    labels = torch.zeros(len(student), dtype=torch.int64)
    made = recipe(NAME, temperature=case["hyper"]["T"], reduction="paper")
    loss = made.extra(inputs(student, case["inputs"]["old"], labels))[TERM]
    loss.backward()
    assert loss.item() == pytest.approx(case["value"], rel=1e-10)
    assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-8)
    gate = old_class_weight(case["inputs"]["student"] / 0.4, case["hyper"]["known"])
    assert torch.allclose(gate, case["values"]["gate"], rtol=1e-8)


def test_mean_differs_from_the_released_code_as_documented():
    """A divergence, the weight a constant in the gradient, and no logarithm of 0."""
    fixture = load(NAME)
    case, made = fixture["cases"]["gate-detached"], recipe(NAME)
    student = case["inputs"]["student"].requires_grad_()
    labels = torch.zeros(len(student), dtype=torch.int64)
    loss = made.extra(inputs(student, case["inputs"]["old"], labels))[TERM]
    loss.backward()
    divergence, infinite = fixture["differs"]
    assert loss.item() == pytest.approx(float(divergence["expected"]), rel=1e-10)
    assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-8)
    far = case["inputs"]["student"].detach().clone()
    far[0, 0] = 400
    for reduction in ("mean", "paper"):
        found = recipe(NAME, reduction=reduction).extra(inputs(far, case["inputs"]["old"], labels))
        assert math.isfinite(found[TERM].item())
    assert found[TERM].item() == pytest.approx(float(infinite["expected"]), rel=1e-9)


def test_the_weights_mean_is_one():
    for seed in range(3):
        weight = old_class_weight(logits(9, 6, seed)[0] / 0.4, 4)
        assert weight.mean().item() == pytest.approx(1.0, rel=1e-12)
    none_old = torch.tensor([[0.0, 0.0, 500.0], [0.0, 1.0, 900.0]], dtype=torch.float64)
    weight = old_class_weight(none_old / 0.4, 2)
    assert weight.mean().item() == pytest.approx(1.0, rel=1e-12)
    assert torch.allclose(old_class_weight(none_old, 3), torch.ones(2).double())


def test_a_student_that_agrees_on_the_old_classes_pays_nothing():
    given = _given()
    student = given.student.clone()
    student[:, :3] = given.teacher + torch.randn(6, 1)  # the same but for a constant
    student.requires_grad_()
    loss = recipe(NAME).extra(dataclasses.replace(given, student=student))[TERM]
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-9)
    assert student.grad.abs().max() < 1e-9


def test_old_classes_feel_it_and_new_ones_do_not():
    given = _given()
    student = given.student.clone().requires_grad_()
    recipe(NAME).extra(dataclasses.replace(given, student=student))[TERM].backward()
    assert student.grad[:, :3].abs().min() > 0
    assert student.grad[:, 3:].abs().max() == 0


def test_the_gradient_is_that_of_the_loss():
    """As released the weight is part of it."""
    given, made = _given(4, 3, 2), recipe(NAME, reduction="paper")

    def loss(student):
        return made.extra(dataclasses.replace(given, student=student))[TERM]

    assert torch.autograd.gradcheck(loss, (given.student / 4).requires_grad_())


def test_the_order_of_the_batch_is_nothing():
    given, made = _given(), recipe(NAME)
    order = torch.randperm(6)
    mixed = inputs(given.student[order], given.teacher[order], given.target[order])
    assert made.extra(mixed)[TERM].item() == pytest.approx(made.extra(given)[TERM].item())


def test_half_precision_and_dead_outputs():
    given, made = _given(), recipe(NAME)
    exact = made.extra(given)[TERM].item()
    half = made.extra(in_type(given, torch.bfloat16))[TERM].item()
    assert half == pytest.approx(exact, rel=0.1)
    student = torch.zeros(2, 5, requires_grad=True)
    loss = made.extra(inputs(student, torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)))[TERM]
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(student.grad).all()


def test_it_stands_for_the_soft_term_and_only_classes_have_it():
    assert set(recipe(NAME).terms(_given())) == {"hard", TERM}
    assert set(recipe(NAME, weights={TERM: 0.0}).terms(_given())) == {"hard"}
    with pytest.raises(KDError) as error:
        recipe(NAME, kind="counting")
    assert error.value.code == "recipe-task"
    assert "it adds classes" in error.value.message


def test_only_what_compares_no_other_outputs_goes_with_it():
    assert find_recipe(f"{NAME}+at").widens
    assert not find_recipe(f"{NAME}+logit-std").widens
    assert not find_recipe("none+at").widens
    assert find_recipe("none").widens


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    project(folder)
    return folder


def _trained(site, work, *sets):
    """A training of new photos alone, from the deployed student, and its accuracies."""
    spec = load_spec(site / "kdcompile.toml", ("distill.evaluations=1", *sets))
    teacher, student = (load_factory(f"model.py:{n}", site)() for n in ("teacher", "student"))
    load_weights(teacher, site / "teacher.safetensors")
    torch.manual_seed(0)
    load_weights(student, site / "deployed.safetensors", (OLD, OLD + NEW))
    splits = [
        [Photo(str(i), array=x[..., None], label=float(y))
         for i, (x, y) in enumerate(zip(*photos(each, classes, seed), strict=True))]
        for each, classes, seed in ((12, range(OLD, OLD + NEW), 0), (10, range(OLD + NEW), 4))
    ]  # fmt: skip
    work.mkdir()
    training = Trainer(spec, teacher, student, *splits, work)
    training.run()
    return _accuracy(training.setting.ema, splits[1]), training


@torch.no_grad()
def _accuracy(net: nn.Module, judged):
    """Of old and of new classes."""
    pixels = np.stack([photo.pixels(1) for photo in judged]).transpose(0, 3, 1, 2)
    found = net.eval()(torch.from_numpy((pixels / 255 - 0.5) / 0.25).float()).argmax(1).numpy()
    labels = np.array([photo.label for photo in judged])
    return [(found == labels)[part].mean() for part in (labels < OLD, labels >= OLD)]


def test_it_keeps_more_of_the_old_classes_than_fine_tuning(site, tmp_path):
    (kept, learnt), _ = _trained(site, tmp_path / "a")
    (forgot, also), _ = _trained(site, tmp_path / "b", "distill.recipe=none")
    assert kept > forgot + 0.1
    assert learnt > 0.6
    assert also > 0.6


def test_it_needs_a_student_of_ones_own(tmp_path):
    own = 'family = "model.py:student"\nweights = "deployed.safetensors"\n'
    (tmp_path / "kdcompile.toml").write_text(SPEC.replace(own, ""))
    kind = find_recipe(NAME)
    with pytest.raises(KDError) as error:
        refuse_unmet(NAME, kind.needs, load_spec(tmp_path / "kdcompile.toml"))
    assert error.value.code == "recipe-needs"
    assert "more classes than the teacher" in error.value.message


@pytest.mark.parametrize("other", ["kd", "class-relation+logit-std"])
def test_a_wider_student_is_refused_where_outputs_are_compared(site, tmp_path, other):
    with pytest.raises(KDError) as error:
        _trained(site, tmp_path / "work", f"distill.recipe={other}")
    assert error.value.code == "student-output"
    assert NAME in error.value.fix
