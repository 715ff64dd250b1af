"""partitioned: whom a photo trusts, the loss against float64 loops, and what a refresh keeps."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from class_recipes import in_type, inputs, logits, network, photos, recipe
from class_recipes import trainer as class_trainer
from tiny_training import trainer as counting_trainer

from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.distill.findings import flips
from kdcompile.distill.recipe import refuse_unmet
from kdcompile.distill.registry import find_recipe
from kdcompile.distill.state import State
from kdcompile.tasks.task import find_task

NAME = "partitioned"


def _given(student, teacher, first, labels):
    return dataclasses.replace(inputs(student, teacher, labels), first=first)


def _classes(rows=7, classes=5):
    student, teacher, labels = logits(rows, classes)
    first = logits(rows, classes, seed=9)[0]
    return _given(student, teacher, first, labels)


def _maps(shape=(3, 1, 4, 5), seed=0):
    random = torch.Generator().manual_seed(seed)
    student, teacher, first, labels = (
        torch.rand(shape, generator=random, dtype=torch.float64) for _ in range(4)
    )
    return _given(student, teacher, first, labels)


def _softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def _kl(student, teacher, temperature):
    p, q = (_softmax([v / temperature for v in row]) for row in (student, teacher))
    return temperature**2 * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (2, 3), (7, 11)])
def test_classes_trust_whoever_holds_the_label_more_likely(rows, classes):
    given = _classes(rows, classes)
    made = recipe(NAME, temperature=3.0)
    total, trusted = 0.0, []
    for i, label in enumerate(given.target.tolist()):
        ours, theirs, old = (x[i].tolist() for x in (given.student, given.teacher, given.first))
        trusted.append(_softmax(theirs)[label] > _softmax(old)[label])
        total += _kl(ours, theirs if trusted[-1] else old, 3.0)
    assert made.trusts_teacher(given).flatten().tolist() == trusted
    found = made.extra(given)["partitioned"].item()
    assert found == pytest.approx(total / rows, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 1, 3), (3, 1, 4, 5)])
@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_crowds_trust_the_better_count(shape, reduction):
    given = _maps(shape)
    made = recipe(NAME, kind="counting", targets=given.target, reduction=reduction)
    total, trusted = 0.0, []
    arrays = [x.numpy() for x in (given.student, given.target, given.teacher, given.first)]
    for ours, label, theirs, old in zip(*arrays, strict=True):
        true = label.sum()
        trusted.append(abs(theirs.sum() - true) < abs(old.sum() - true))
        total += float(np.square(ours - (theirs if trusted[-1] else old)).sum())
    assert made.trusts_teacher(given).flatten().tolist() == trusted
    scale = given.student.numel() * made.objective.squared if reduction == "mean" else shape[0]
    assert made.extra(given)["partitioned"].item() == pytest.approx(total / scale, rel=1e-9)


def test_values_trust_the_smaller_error():
    teacher, first, labels = (torch.tensor([[a], [b]]) for a, b in ((1, 9), (2, 6), (0, 5)))
    given = _given(torch.zeros(2, 1), *(x.double() for x in (teacher, first, labels)))
    made = recipe(NAME, kind="regression", targets=labels)
    assert made.trusts_teacher(given).flatten().tolist() == [True, False]
    expected = (1**2 + 6**2) / 2 / made.objective.scale**2
    assert made.extra(given)["partitioned"].item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["classification", "counting"])
def test_one_teacher_twice_is_plain_distillation(kind):
    """Weights included: with teacher and first student alike the total is kd's."""
    given = _classes() if kind == "classification" else _maps()
    given = dataclasses.replace(given, first=given.teacher)
    made, plain = (recipe(name, kind=kind, targets=given.target) for name in (NAME, "kd"))
    totals = [sum(r.weights[n] * t for n, t in r.terms(given).items()) for r in (made, plain)]
    assert totals[0].item() == pytest.approx(totals[1].item(), rel=1e-12)
    assert set(made.terms(given)) == set(plain.terms(given)) - {"soft"} | {"partitioned"}


@pytest.mark.parametrize("kind", ["classification", "counting"])
def test_a_student_that_agrees_with_both_is_left_alone(kind):
    given = _classes() if kind == "classification" else _maps()
    student = given.student.clone().requires_grad_()
    given = dataclasses.replace(
        given, student=student, teacher=student.detach(), first=student.detach()
    )
    loss = recipe(NAME, kind=kind, targets=given.target).extra(given)["partitioned"]
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_the_gradient_is_that_of_the_loss():
    given = _classes(4, 3)
    made = recipe(NAME)

    def loss(student):
        return made.extra(dataclasses.replace(given, student=student))["partitioned"]

    assert torch.autograd.gradcheck(loss, given.student.clone().requires_grad_())


def test_the_order_of_the_batch_is_nothing():
    given, made = _classes(), recipe(NAME)
    order = torch.randperm(7)
    mixed = _given(given.student[order], given.teacher[order], given.first[order],
                   given.target[order])  # fmt: skip
    assert made.extra(mixed)["partitioned"].item() == pytest.approx(
        made.extra(given)["partitioned"].item(), rel=1e-12
    )


@pytest.mark.parametrize("kind", ["classification", "counting"])
def test_half_precision_and_dead_outputs(kind):
    given = _classes() if kind == "classification" else _maps()
    made = recipe(NAME, kind=kind, targets=given.target)
    exact = made.extra(given)["partitioned"].item()
    half = in_type(given, torch.bfloat16)
    half = dataclasses.replace(half, first=given.first.bfloat16())
    if kind == "classification":
        half = dataclasses.replace(half, target=given.target)
    assert made.extra(half)["partitioned"].item() == pytest.approx(exact, rel=0.1)
    student = torch.zeros_like(given.student, dtype=torch.float32).requires_grad_()
    nothing = torch.zeros_like(student)
    dead = dataclasses.replace(given, student=student, teacher=nothing, first=nothing)
    loss = made.extra(dead)["partitioned"]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_a_term_that_is_off_is_not_computed():
    made = recipe(NAME, weights={"partitioned": 0.0})
    assert set(made.terms(_classes())) == {"hard"}


def test_it_needs_the_student_that_is_deployed(spec):
    kind = find_recipe(NAME)
    with pytest.raises(KDError) as error:
        refuse_unmet(kind.about.name, kind.needs, spec())
    assert error.value.code == "recipe-needs"
    assert 'student.init = "file"' in error.value.fix
    refuse_unmet(kind.about.name, kind.needs, spec("student.init=file", "student.weights=w.pt"))


def test_it_trains_a_counter(spec, tmp_path):
    training = counting_trainer(spec(f"distill.recipe={NAME}", "distill.steps=6"), tmp_path / "w")
    state = training.run()
    assert state.step == 6
    assert {"hard", "count", "partitioned"} == set(state.metrics[-1]["terms"])
    first = training.setting.first.state_dict()
    assert any(not torch.equal(first[n], t) for n, t in training.student.state_dict().items())


def test_a_useless_teacher_does_less_harm_than_in_kd(tmp_path):
    """A student that is right on every photo, refreshed by a teacher that knows nothing."""
    kept, images = {}, photos(30, 0)
    good = _fitted(images)
    for name in ("kd", NAME):
        folder = tmp_path / name
        folder.mkdir()
        training = class_trainer(
            folder, f"distill.recipe={name}", "distill.steps=60", "distill.ema=0"
        )
        training.setting.student.load_state_dict(good)
        if training.setting.first is not None:
            training.setting.first.load_state_dict(good)
        run = training._enter(0, training._plans[0], 60, 0)
        for step in range(60):
            run.step(step)
        kept[name] = _right(training.student, images)
    assert kept[NAME] == 1.0 > kept["kd"] + 0.2


def _fitted(images):
    net = network(4, 1)
    given = torch.stack([_input(photo) for photo in images])
    labels = torch.tensor([int(photo.label) for photo in images])
    optimizer = torch.optim.Adam(net.parameters(), 2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(given), labels).backward()
        optimizer.step()
    assert _right(net, images) == 1.0
    return net.state_dict()


def _input(photo):
    return (torch.from_numpy(photo.pixels(1).transpose(2, 0, 1).copy()) / 255 - 0.5) / 0.5


@torch.no_grad()
def _right(net, images):
    found = net.eval()(torch.stack([_input(photo) for photo in images])).argmax(1)
    return (found == torch.tensor([photo.label for photo in images])).float().mean().item()


def test_flips_are_counted_beside_the_start():
    images = photos(4, 0, classes=2)  # 0, 1, 0, 1
    state = State(initial=np.array([0.0, 0, 0, 1]), predicted=np.array([1.0, 1, 0, 0]))
    found = flips(find_task("classification"), state, images)
    assert (found["worse"], found["better"], found["share_worse"]) == (2, 1, 0.5)
    assert flips(find_task("classification"), State(), images) is None


def test_a_count_flips_by_more_than_the_deployed_students_mean_error():
    points = np.zeros((10, 2), np.float32)
    images = [Photo(str(i), points, array=np.zeros((4, 4, 1), np.uint8)) for i in range(3)]
    state = State(
        initial=np.array([11.0, 8, 13]), predicted=np.array([14.0, 9, 10])
    )  # mean error 2
    found = flips(find_task("counting"), state, images)
    assert (found["worse"], found["better"]) == (1, 1)  # by 3, by -1 and by -3


def test_a_training_keeps_what_it_predicted_at_first(spec, tmp_path):
    training = counting_trainer(spec(f"distill.recipe={NAME}", "distill.steps=4"), tmp_path / "w")
    state = training.run()
    assert len(state.initial) == len(state.predicted) == 6
