"""hard: the hardest view that the teacher answers alike, by brute force, and a student at rest."""

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from class_recipes import recipe
from class_recipes import trainer as class_trainer
from tiny_training import trainer
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from kdcompile.config.distill import Distill
from kdcompile.core.distributed import Processes
from kdcompile.core.errors import KDError
from kdcompile.data.augment import Batch
from kdcompile.distill.evaluate import peek
from kdcompile.distill.objective import OBJECTIVES
from kdcompile.distill.recipe import RecipeContext
from kdcompile.distill.recipes.hard import HardViews, distance, recoloured, turned

KINDS = ("classification", "counting", "regression")


def _network(kind, seed):
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)]
    if kind == "counting":
        return nn.Sequential(*body, nn.Conv2d(4, 1, 1))
    head = nn.Linear(4 * 36, 3 if kind == "classification" else 1)
    head.weight.data *= 5
    return nn.Sequential(*body, nn.Flatten(), head)


def _made(kind, limit=None, candidates=4, student=None):
    """The recipe between two networks, with a limit of its own, and its target's scale 0.5 or 2."""
    options = Distill()
    objective = OBJECTIVES[kind](options, torch.tensor([[-2.0], [2.0]]))
    made = HardViews([], options, objective)
    teacher, student = _network(kind, 0).eval(), student or _network(kind, 1).train()
    looked = []

    def look(images):
        looked.append(images)
        return teacher(images), []

    made.prepare(RecipeContext(teacher, student, None, (), 9, None, look, nullcontext, Processes()))
    if limit is not None:
        made.nats = made.tolerance = limit
    made.candidates = candidates
    made.looked = looked
    return made, teacher, student


def _batch(kind="counting", size=9, seed=0):
    random = torch.Generator().manual_seed(seed)
    target = torch.zeros(size, dtype=torch.int64)
    return Batch(torch.randn(size, 1, 6, 6, generator=random), target, torch.arange(size))


def _apart(kind, one, other):
    """How far two answers to one image are apart; float64 numpy."""
    one, other = (answer.detach().double().numpy().ravel() for answer in (one, other))
    if kind == "classification":
        p, q = (np.exp(z) / np.exp(z).sum() for z in (one, other))
        return float(np.sum(p * np.log(p / q)))
    return float(np.mean((one - other) ** 2)) / 4.0


@pytest.mark.parametrize("kind", KINDS)
def test_distances_are_the_formulas(kind):
    made, teacher, student = _made(kind)
    images = _batch().images
    one, other = teacher(images).detach(), student.eval()(images).detach()
    found = distance(one, other, made.objective)
    assert found.shape == (9,)
    expected = [_apart(kind, a, b) for a, b in zip(one, other, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert distance(one, one, made.objective).tolist() == pytest.approx([0] * 9, abs=1e-6)
    half = distance(one.bfloat16(), other, made.objective)
    assert half.dtype == torch.float32


def test_classes_that_only_the_student_has_are_left_out():
    objective = OBJECTIVES["classification"](Distill(), torch.zeros(1))
    one, other = torch.randn(4, 3), torch.randn(4, 5)
    assert torch.equal(distance(one, other, objective), distance(one, other[:, :3], objective))


@pytest.mark.parametrize("kind", KINDS)
def test_the_chosen_view_is_the_hardest_consistent_one(kind):
    """Against a search by hand, under limits that all, some and no candidates meet."""
    batch = _batch()
    outcomes = set()
    for limit in (1e9, None, 0.02, 0.005, -1.0):
        made, teacher, student = _made(kind, limit)
        torch.manual_seed(5)
        view = made.view(batch)
        torch.manual_seed(5)
        candidates = [made.candidate(batch.images) for _ in range(4)]
        student.eval()
        for i, image in enumerate(batch.images):
            best, chosen = -np.inf, None
            for images in candidates:
                theirs = teacher(images[i][None])
                consistency = _apart(kind, teacher(image[None]), theirs)
                gap = _apart(kind, theirs, student(images[i][None]))
                if consistency <= made.limit and gap > best:
                    best, chosen = gap, images[i]
            assert torch.equal(view.images[i], image if chosen is None else chosen)
            outcomes.add("original" if chosen is None else "view")
            kept = _apart(kind, teacher(image[None]), teacher(view.images[i][None]))
            assert chosen is None or kept <= made.limit * (1 + 1e-4)
        if limit == -1.0:
            assert torch.equal(view.images, batch.images)
        assert view.target is batch.target
        assert view.photo is batch.photo
    assert outcomes == {"original", "view"}


def test_a_student_that_answers_no_number_leaves_the_original():
    class Broken(nn.Module):
        def forward(self, images):
            return torch.full_like(images, torch.nan)

    made, _, _ = _made("counting", limit=1e9, student=Broken())
    batch = _batch()
    assert torch.equal(made.view(batch).images, batch.images)


@pytest.mark.parametrize("kind", KINDS)
def test_the_look_leaves_the_student_as_it_was(kind):
    """Running statistics, modes and random numbers; a part that was at rest stays at rest."""
    made, _, student = _made(kind)
    student[1].eval()
    before = copy.deepcopy(student.state_dict())
    modes = [module.training for module in student.modules()]
    made.view(_batch())
    assert [module.training for module in student.modules()] == modes
    assert all(torch.equal(before[n], value) for n, value in student.state_dict().items())
    assert len(list(made.parameters())) == len(made.state_dict()) == 0
    state = torch.get_rng_state()
    first, again = peek(student, _batch().images), peek(student, _batch().images)
    assert torch.equal(first, again)  # dropout is off
    assert torch.equal(state, torch.get_rng_state())
    assert not first.requires_grad
    student.train()
    student(_batch().images)
    assert any(not torch.equal(before[n], value) for n, value in student.state_dict().items())


def test_a_look_that_fails_leaves_the_modes():
    student = _network("counting", 0).train()
    with pytest.raises(RuntimeError):
        peek(student, torch.zeros(1, 2, 6, 6))
    assert all(module.training for module in student.modules())


def test_what_a_step_costs():
    """1 + 4 teacher forwards in the view, of one batch each."""
    made, _, _ = _made("counting")
    made.view(_batch())
    assert [len(images) for images in made.looked] == [9] * 5
    assert made.about.cost == "kd + 5 teacher and 4 student forwards"


def test_the_same_seed_gives_the_same_view():
    made, _, _ = _made("classification", limit=1e9)
    views = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        views.append(made.view(_batch()).images)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])


def test_objects_stay_where_labels_are_places():
    """Only classes are turned and shifted: elsewhere pixels see their neighbours at most."""
    image = torch.zeros(64, 1, 15, 15)
    image[:, :, 7, 7] = 100
    for kind, most in (("counting", 1), ("regression", 1), ("classification", 5)):
        made, _, _ = _made(kind)
        torch.manual_seed(0)
        bright = (made.candidate(image) > 10).nonzero()[:, 2:] - 7
        assert bright.abs().max() <= most
        assert (bright.abs().max() > 1) == (kind == "classification")


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (1, 3, 5, 7), (2, 2, 8, 4)])
@pytest.mark.parametrize("change", [recoloured, turned])
def test_views_are_finite_and_mild(change, shape):
    torch.manual_seed(0)
    images = torch.randn(shape)
    view = change(images)
    assert view.shape == shape
    assert torch.isfinite(view).all()
    assert not torch.equal(view, images) or shape[2:] == (1, 1)
    assert torch.allclose(turned(torch.ones(shape)), torch.ones(shape))
    constant = recoloured(torch.zeros(shape))
    assert torch.isfinite(constant).all()
    assert constant.abs().max() < 0.3 + 0.2 * 5
    half = change(images.bfloat16())
    assert half.dtype == torch.float32


def test_a_turn_of_a_wide_image_is_a_turn():
    """Distances from the centre are kept, in pixels, whatever the sides."""
    image = torch.zeros(40, 1, 21, 61)
    image[:, :, 10, 50] = 1
    torch.manual_seed(1)
    places = turned(image).flatten(1).argmax(1)
    torch.manual_seed(1)
    turn, right, down = (2 * torch.rand(40, 1, 1, 1).flatten() - 1 for _ in range(3))
    angle = turn * np.radians(15)
    x = 30 + 20 * angle.cos() - (0.1 * 61 * right) * angle.cos() - (0.1 * 21 * down) * angle.sin()
    y = 10 - 20 * angle.sin() + (0.1 * 61 * right) * angle.sin() - (0.1 * 21 * down) * angle.cos()
    inside = (y > 0) & (y < 20) & (x > 0) & (x < 60)
    assert inside.sum() > 20
    assert (places % 61 - x)[inside].abs().max() <= 1.01
    assert (places // 61 - y)[inside].abs().max() <= 1.01


def test_under_autocast_places_are_not_rounded():
    images = torch.randn(2, 1, 64, 64)
    torch.manual_seed(0)
    exact = turned(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(turned(images), exact)


def test_type_and_memory_format_are_the_batchs():
    made, _, _ = _made("classification")
    images = torch.randn(4, 3, 6, 6).bfloat16().to(memory_format=torch.channels_last)
    view = made.candidate(images)
    assert view.dtype == torch.bfloat16
    assert view.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS)
def test_the_view_waits_for_no_value(kind):
    """On tensors without values; reading one would be an error, as it is in a CUDA graph."""
    made, _, _ = _made(kind)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.zeros(4, 1, 6, 6)
        view = made.view(Batch(images, torch.zeros(4), torch.arange(4)))
    assert view.images.shape == images.shape


@pytest.mark.parametrize("name", ["hard", "hard+mixup", "skt+hard"])
def test_a_counting_step_trains_on_the_chosen_views(spec, tmp_path, monkeypatch, name):
    monkeypatch.setattr(HardViews, "tolerance", 1e9)
    run = _entered(trainer(spec("distill.steps=2", f"distill.recipe={name}"), tmp_path / "w"))
    seen = []
    run._forward = lambda *given: (seen.append(given[0]), run._plain(*given))[1]
    run.step(0)
    assert (seen[0] != run.sampler.batch(0).images).flatten(1).any(1).all()
    assert torch.isfinite(run.values).all()
    run.release()


def _entered(training):
    return training._enter(0, training._plans[0], 2, 0)


def test_a_class_training_runs_and_refuses_recurring_crops(tmp_path):
    sets = ("distill.steps=3", "distill.recipe=hard")
    with pytest.raises(KDError) as error:
        class_trainer(tmp_path, *sets, "distill.views=2").run()
    assert error.value.code == "cache-mixed"
    assert np.isfinite(class_trainer(tmp_path, *sets, "distill.views=0").run().metrics[-1]["loss"])


def test_its_terms_and_weights_are_kds():
    for kind in KINDS:
        assert recipe("hard", kind).weights == recipe("kd", kind).weights
