"""nd: against numpy, the authors' values, and class means from a pass over the photos."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from class_recipes import in_type, inputs, logits, recipe, trainer
from recipe_fixtures import load

from kdcompile.core.distributed import Processes
from kdcompile.core.errors import KDError
from kdcompile.data.augment import Batch
from kdcompile.distill.recipe import RecipeContext


def _maps(batch, channels, side=(1, 1), seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, *side, generator=random).double()


def _made(widths, means, **options):
    made = recipe("nd", taps=[widths], **options)
    made.register_buffer("means", means)
    return made


def _given(student, teacher, labels):
    given, _, _ = logits(len(student), 7)
    return inputs(given, given, labels, [student], [teacher])


def _ground(maps, labels, classes, batch=4):
    """A teacher whose maps are those of the images' indices."""
    index = torch.arange(len(maps)).view(-1, 1, 1, 1)

    def crops():
        for first in range(0, len(maps), batch):
            part = slice(first, first + batch)
            yield Batch(index[part], labels[part], index[part].flatten())

    def look(images):
        own = maps[images.flatten()]
        return own.new_zeros(len(own), classes), [own[:, :1], own]

    return RecipeContext(None, None, None, (), len(maps), crops, look, nullcontext, Processes())


@pytest.mark.parametrize(("batch", "own", "theirs"), [(1, 3, 3), (2, 3, 5), (7, 4, 1), (5, 1, 2)])
@pytest.mark.parametrize("side", [(1, 1), (3, 2)])
def test_it_is_the_formula(batch, own, theirs, side):
    student, teacher = _maps(batch, own, side), 0.5 * _maps(batch, theirs, side, seed=1)
    _, _, labels = logits(batch, 3)
    means = _maps(3, theirs, seed=2).flatten(1)
    made = _made((theirs, own), means)
    rows = []
    for i, label in enumerate(labels.tolist()):
        f = np.array([channel.mean() for channel in student[i].numpy()])
        if own != theirs:
            weight, bias = (p.detach().numpy() for p in made.adapter.parameters())
            f = weight @ f + bias
        g = np.array([channel.mean() for channel in teacher[i].numpy()])
        e = means[label].numpy() / np.linalg.norm(means[label].numpy())
        rows.append(1 - f @ e / max(np.linalg.norm(f), np.linalg.norm(g)))
    found = made.extra(_given(student, teacher, labels))["nd"]
    assert found.item() == pytest.approx(np.mean(rows), rel=1e-9)


@pytest.mark.parametrize("name", ["both-branches", "zero-student"])
def test_it_is_the_authors(name):
    case = load("nd")["cases"][name]
    given = case["inputs"]
    student = given["student"].requires_grad_()
    made = _made((student.shape[1], student.shape[1]), given["means"])
    maps = (rows[:, :, None, None] for rows in (student, given["teacher"]))
    loss = made.extra(_given(*maps, given["labels"]))["nd"]
    assert loss.item() == pytest.approx(case["value"], rel=1e-6)
    loss.backward()
    if "student" in case["gradients"]:
        assert torch.allclose(student.grad, case["gradients"]["student"], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("length", [0.1, 10.0])
def test_the_gradient_on_both_sides_of_the_teachers_length(length):
    student, teacher = length * _maps(3, 4, (2, 2)), _maps(3, 2, (2, 2), seed=1)
    made = _made((2, 4), _maps(3, 2, seed=2).flatten(1))
    labels = torch.tensor([0, 2, 1])

    def loss(maps, weight):
        own = {"adapter.weight": weight}
        return torch.func.functional_call(made, own, _given(maps, teacher, labels))["nd"]

    weight = made.adapter.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), weight))


def test_nothing_is_lost_just_where_student_is_aligned_and_long_enough():
    means, teacher = _maps(3, 4).flatten(1), _maps(3, 4, seed=1)
    labels = torch.tensor([0, 1, 2])
    made = _made((4, 4), means)
    aligned = means / means.norm(dim=1, keepdim=True) * teacher.flatten(1).norm(dim=1, keepdim=True)

    def loss(rows, scale=1.0):
        return made.extra(_given(scale * rows[:, :, None, None], teacher, labels))["nd"].item()

    assert loss(aligned) == pytest.approx(0, abs=1e-12)
    assert loss(aligned, 5.0) == pytest.approx(0, abs=1e-12)
    assert loss(aligned, 0.25) == pytest.approx(0.75)
    assert loss(-aligned) == pytest.approx(2)
    order = torch.tensor([2, 0, 1])
    rows = _maps(3, 4, seed=3).flatten(1)
    shuffled = _given(rows[order, :, None, None], teacher[order], labels[order])
    assert made.extra(shuffled)["nd"].item() == pytest.approx(loss(rows))


def test_class_means_are_those_of_all_photos():
    maps, labels = _maps(11, 3, (2, 2)), torch.arange(11) % 3
    ground = _ground(maps, labels, 3)
    made = recipe("nd", taps=[(3, 3)])
    made.prepare(ground)
    assert made.means.shape == (3, 3)
    made.learn(ground)
    for k in range(3):
        expected = maps[labels == k].numpy().mean((0, 2, 3))
        assert made.means[k].numpy() == pytest.approx(expected, rel=1e-6)
    assert "means" in made.state_dict()


@pytest.mark.parametrize(
    ("labels", "zero", "message"),
    [
        ([0, 2, 2, 0], None, "classes without an image: 1, 3"),
        ([0, 1, 2, 3], 2, "classes without a mean other than zero: 2"),
        ([0, 1, 2, 2], 0, "classes without an image: 3"),
    ],
)
def test_a_class_without_a_mean_is_refused(labels, zero, message):
    maps = _maps(4, 3)
    if zero is not None:
        maps[zero] = 0
    ground = _ground(maps, torch.tensor(labels), 4)
    made = recipe("nd", taps=[(3, 3)])
    made.prepare(ground)
    with pytest.raises(KDError) as error:
        made.learn(ground)
    assert error.value.code == "recipe-needs"
    assert error.value.message.endswith(message)
    assert error.value.fix.endswith("or use recipe kd")


def test_many_missing_classes_are_not_all_named():
    ground = _ground(_maps(2, 3), torch.tensor([0, 1]), 20)
    made = recipe("nd", taps=[(3, 3)])
    made.prepare(ground)
    with pytest.raises(KDError, match="image: 2, 3, 4, 5, 6 and more"):
        made.learn(ground)


def test_bf16_and_zeros():
    labels = torch.tensor([0, 2, 1, 1])
    student, teacher = _maps(4, 3, (4, 4)), _maps(4, 2, (4, 4), seed=1)
    made = _made((2, 3), _maps(3, 2, seed=2).flatten(1))
    exact = made.extra(_given(student, teacher, labels))["nd"].item()
    given = in_type(_given(student, teacher, labels), torch.bfloat16)
    half = made.float().extra(given)["nd"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact, rel=0.02)
    same = _made((3, 3), _maps(3, 3).flatten(1))
    zeros = torch.zeros_like(student, requires_grad=True)
    loss = same.extra(_given(zeros, torch.zeros_like(zeros), labels))["nd"]
    loss.backward()
    assert loss.item() == 1  # the authors' is 0 / 0
    assert torch.isfinite(zeros.grad).all()


def test_the_adapter_starts_at_the_fit_and_learns():
    student, labels = _maps(4, 3, (6, 5)), torch.tensor([0, 1, 2, 0])
    mix = _maps(2, 3, seed=4).flatten(1)
    teacher = torch.einsum("oc,nchw->nohw", mix, student)
    made = _made((2, 3), _maps(3, 2, seed=2).flatten(1))
    with torch.no_grad():
        made.fit(_given(student, teacher, labels))
    assert torch.allclose(made.adapter.weight, mix, atol=2e-2)
    made(_given(student, teacher, labels))["nd"].backward()
    assert all(p.grad.abs().sum() > 0 for p in made.parameters())
    assert list(recipe("nd", taps=[(3, 3)]).parameters()) == []


def test_terms_weights_and_task():
    made = _made((2, 3), torch.ones(3, 2, dtype=torch.float64))
    assert made.weights == {"hard": 0.1, "soft": 0.9, "nd": 1.0}
    assert recipe("nd", taps=[(2, 3)], reduction="paper").weights["nd"] == 0.2
    with pytest.raises(KDError) as error:
        recipe("nd", "counting", taps=[(2, 3)])
    assert error.value.code == "recipe-task"


def test_a_training_learns_the_means_before_its_first_step(tmp_path):
    training = trainer(tmp_path, "distill.steps=2", "distill.recipe=nd")
    run = training._enter(0, training._plans[0], 2, 0)
    with torch.no_grad():
        means = torch.zeros(3, 8)
        for batch in run._context.crops():
            _, maps = run.look(batch.images)
            means.index_add_(0, batch.target, maps[0].mean((2, 3)) / 4)
    assert torch.allclose(run.recipe.means, means, atol=1e-5)


def test_photos_that_lack_a_class_stop_the_training_and_kd_goes_on(tmp_path):
    with pytest.raises(KDError) as error:
        trainer(tmp_path, "distill.steps=2", "distill.recipe=nd", classes=2).run()
    assert error.value.code == "recipe-needs"
    assert "without an image: 2" in error.value.message
    trainer(tmp_path, "distill.steps=2", "distill.recipe=kd", classes=2).run()
