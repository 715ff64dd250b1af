"""The softened KL of outputs along a named axis, and the loss of a network of several outputs."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from kdcompile.config.distill import Distill
from kdcompile.config.spec import Scores
from kdcompile.data.photo import Photo
from kdcompile.data.rows import AnswerTargets
from kdcompile.data.targets import Extra
from kdcompile.distill.objective import AnswerObjective, make_objective
from kdcompile.distill.softened import softened_kl
from kdcompile.tasks.generic import Generic

SHAPES = [((1, 5), 1), ((1, 5), -1), ((1, 4, 3, 2), 1), ((1, 6, 4), 2), ((7,), 0), ((2, 3), -2)]


def _pair(shape, form):
    torch.manual_seed(len(shape))
    found = [3 * torch.randn(4, *shape, dtype=torch.float64) for _ in range(2)]
    return found[0].requires_grad_(), found[1], form


def _last(values, axis):
    """Rows of classes."""
    values = values.movedim(axis + 1 if axis >= 0 else axis, -1)
    return values.reshape(-1, values.shape[-1])


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_of_logits_it_is_torchs_kl_and_so_is_its_gradient(shape, axis, temperature):
    student, teacher, _ = _pair(shape, "logits")
    found = softened_kl(student, teacher, Scores(axis=axis), temperature)
    (gradient,) = torch.autograd.grad(found, student)
    logs = [_last(values, axis) / temperature for values in (student, teacher)]
    wanted = temperature**2 * functional.kl_div(
        logs[0].log_softmax(1), logs[1].log_softmax(1), log_target=True, reduction="batchmean"
    )
    (wanted_gradient,) = torch.autograd.grad(wanted, student)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_of_probabilities_it_is_that_of_their_roots_renormalised(shape, axis, temperature):
    place = axis + 1 if axis >= 0 else axis
    logits, teacher, _ = _pair(shape, "probabilities")
    student = logits.detach().softmax(place).requires_grad_()
    answer = teacher.softmax(place)
    scores = Scores(axis=axis, form="probabilities")
    found = softened_kl(student, answer, scores, temperature)
    (gradient,) = torch.autograd.grad(found, student)
    roots = [_last(values, axis) ** (1 / temperature) for values in (student, answer)]
    own, theirs = (values / values.sum(1, keepdim=True) for values in roots)
    wanted = temperature**2 * functional.kl_div(own.log(), theirs, reduction="batchmean")
    (wanted_gradient,) = torch.autograd.grad(wanted, student)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-12)


def test_probabilities_of_0_give_a_finite_loss_and_gradient():
    student = torch.tensor([[[1.0, 0.0, 0.0]]], requires_grad=True)
    answer = torch.tensor([[[0.0, 1.0, 0.0]]])
    loss = softened_kl(student, answer, Scores(axis=1, form="probabilities"), 4.0)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss.detach() > 0
    assert torch.isfinite(student.grad).all()
    same = softened_kl(answer, answer, Scores(axis=1, form="probabilities"), 4.0)
    assert float(same) == pytest.approx(0, abs=1e-6)


def _photos(count=6):
    random = np.random.default_rng(0)
    photos = [Photo(f"{i}") for i in range(count)]
    for photo in photos:
        photo.answer.update(
            maps=random.standard_normal((1, 3, 4)).astype(np.float32),
            trace=5 * random.standard_normal((1, 8)).astype(np.float32),
        )
    return photos


def _loss(axes, student, options):
    photos, device = _photos(), torch.device("cpu")
    targets = AnswerTargets(photos, device)
    table = torch.zeros(len(photos), 64)
    table[:, Extra.PHOTO] = torch.arange(len(photos))
    found = targets(table, 0)
    objective = make_objective(Generic(axes), options, found, photos)
    assert isinstance(objective, AnswerObjective)
    return objective.hard(student, found), found[:, 0]


def test_an_output_with_an_axis_has_the_kl_and_the_others_their_squared_error():
    torch.manual_seed(0)
    student = torch.randn(6, 20)
    axes = {"maps": Scores(axis=1)}
    found, answer = _loss(axes, student, Distill(temperature=2.0))
    maps = [rows[:, :12].reshape(6, 1, 3, 4) for rows in (student, answer)]
    kl = softened_kl(*maps, axes["maps"], 2.0)
    gap = student[:, 12:] - answer[:, 12:]
    squared = gap.square().mean() / answer[:, 12:].square().mean()
    torch.testing.assert_close(found, (kl + squared) / 2)
    plain, _ = _loss({}, student, Distill(temperature=2.0))
    assert float(plain) != pytest.approx(float(found), rel=0.01)


def test_the_temperature_is_that_of_the_recipes():
    torch.manual_seed(0)
    student, axes = torch.randn(6, 20), {"maps": Scores(axis=2)}
    values = [float(_loss(axes, student, Distill(temperature=t))[0]) for t in (1.0, 4.0)]
    assert abs(values[0] - values[1]) > 0.01


def test_the_loss_of_the_teachers_own_outputs_is_0():
    axes = {"maps": Scores(axis=1)}
    _, answer = _loss(axes, torch.zeros(6, 20), Distill())
    found, _ = _loss(axes, answer, Distill())
    assert float(found) == pytest.approx(0, abs=1e-6)
