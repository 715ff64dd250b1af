"""One update: what AdamW does, the guard, and the moving average."""

import copy

import pytest
import torch
from torch import nn

from kdcompile.config.distill import Distill
from kdcompile.core.distributed import Processes
from kdcompile.distill.update import Update


def _pair(**options):
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    ema = copy.deepcopy(student).requires_grad_(False)
    update = Update(student, nn.Linear(2, 2), ema, Distill(**options), Processes())
    return student, ema, update


def _loss(student, scale=1.0):
    return scale * student(torch.arange(12.0).view(4, 3)).square().sum()


def test_it_is_adamw_with_clipping():
    student, _, update = _pair(clip=0.5, weight_decay=0.1)
    twin = copy.deepcopy(student)
    plain = torch.optim.AdamW(twin.parameters(), lr=0.1, weight_decay=0.1)

    points = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))

    def distance(model):
        # from 1: a batch norm's outputs have a mean of 0, and so no gradient there
        return (model(points) - 1).square().sum()

    for step in range(3):
        update.set(step, 0.1, step)
        loss = distance(student)
        update.apply(loss, loss.detach().view(1))
        plain.zero_grad()
        distance(twin).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        plain.step()
    for (name, own), other in zip(student.named_parameters(), twin.parameters(), strict=True):
        # in front of a batch norm a gradient is rounding (bias) or small, and Adam magnifies it
        assert name == "0.bias" or torch.allclose(own, other, atol=1e-5), name


def test_making_it_changes_no_weight():
    torch.manual_seed(0)
    fresh = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    student, _, update = _pair()
    for name, value in student.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name])
    assert all(float(s["step"]) == 0 for s in update.optimizer.state.values())


@pytest.mark.parametrize("bad", ["loss", "term", "gradient"])
def test_nothing_changes_from_the_first_bad_step_on(bad):
    student, _, update = _pair()
    for step in range(5):
        kept = copy.deepcopy(dict(student.named_parameters()))
        update.set(step, 0.1, step)
        loss = _loss(student)
        values = loss.detach().view(1)
        if step == 2:
            if bad == "gradient":
                student[0].weight.register_hook(lambda g: g * float("inf"))
            values = values * float("nan") if bad == "term" else values
            loss = loss * float("inf") if bad == "loss" else loss
        update.apply(loss, values)
        changed = any(not torch.equal(kept[n], p) for n, p in student.named_parameters())
        assert changed == (step < 2)
    assert int(update.first_bad) == 2


def test_the_average_follows_with_growing_memory():
    student, ema, update = _pair(ema=0.9)
    before = ema[0].weight.clone()
    update.set(0, 0.1, 0)
    loss = _loss(student)
    update.apply(loss, loss.detach().view(1))
    decay = 1 / 10
    expected = decay * before + (1 - decay) * student[0].weight
    assert torch.allclose(ema[0].weight, expected, atol=1e-6)
    assert int(ema[1].num_batches_tracked) == int(student[1].num_batches_tracked) == 1
    assert torch.allclose(ema[1].running_mean, 0.9 * student[1].running_mean, atol=1e-6)
    update.set(1, 0.0, 10_000)
    assert float(update._decay) == pytest.approx(0.1)


def test_state_round_trip_keeps_the_tensor_of_the_rate():
    student, _, update = _pair()
    other_student, _, other = _pair()
    update.set(0, 0.1, 0)
    loss = _loss(student)
    update.apply(loss, loss.detach().view(1))
    other_student.load_state_dict(student.state_dict())
    other.load_state_dict(copy.deepcopy(update.state_dict()))
    for net, each in ((student, update), (other_student, other)):
        each.set(1, 0.05, 1)
        again = _loss(net)
        each.apply(again, again.detach().view(1))
    for own, twin in zip(student.parameters(), other_student.parameters(), strict=True):
        assert torch.equal(own, twin)
