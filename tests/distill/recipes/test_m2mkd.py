"""Recipe `m2mkd`: hybrids, stitches, and what they leave alone."""

import copy

import numpy as np
import pytest
import torch
from recipe_ground import Bench, network
from tiny_training import PowerCutError, stopped_at, trainer
from torch import nn

KINDS = ("counting", "classification", "regression")
LABEL = 0.5


def _bench(kind="counting", fitted=False, **options):
    bench = Bench("m2mkd", kind, **options)
    if fitted:
        bench.recipe.fit(bench.inputs(bench.images(8)))
    return bench


def _stitch(layer, maps):
    mixed = np.einsum("oc,nchw->nohw", layer.weight.detach().numpy(), maps.detach().numpy())
    return torch.from_numpy(mixed + layer.bias.detach().numpy()[:, None, None])


def _hard(objective, kind, output, target):
    output, target = output.detach().numpy(), target.numpy()
    if kind == "classification":
        e = np.exp(output)
        return float(-np.log(e / e.sum(1, keepdims=True))[np.arange(len(target)), target].mean())
    scale = objective.squared if kind == "counting" else objective.scale**2
    return float(np.square(output - target).mean()) / scale


def _soft(objective, kind, output, teacher, temperature):
    if kind != "classification":
        return _hard(objective, kind, output, teacher)
    p, q = (np.exp(x.detach().numpy() / temperature) for x in (output, teacher))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return temperature**2 * float((q * np.log(q / p)).sum(1).mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "side"), [(4, 6), (1, 1), (2, 3)])
def test_the_terms_are_their_formula(kind, number, side):
    """Part after part of both networks, with the stitches between them."""
    bench = _bench(kind, side=side, temperature=3.0)
    recipe, images, inputs = bench.recipe, bench.images(number), bench.inputs(bench.images(number))
    student, teacher, maps = bench.student, bench.teacher, inputs.teacher_features
    entering = [_stitch(e, t) for e, t in zip(recipe.enter, maps, strict=True)]
    made = [student[0](images), student[1](entering[0])]
    hybrids = [
        teacher[2](teacher[1](_stitch(recipe.leave[0], made[0]))),
        teacher[2](_stitch(recipe.leave[1], made[1])),
        student[2](entering[1]),
    ]
    losses = [
        LABEL * _hard(recipe.objective, kind, h, inputs.target)
        + (1 - LABEL) * _soft(recipe.objective, kind, h, inputs.teacher, 3.0)
        for h in hybrids
    ]
    found = bench.terms(images)
    assert set(found) == {"hybrid"}
    assert found["hybrid"].item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_that_is_the_teacher_has_the_teachers_label_loss_alone(kind):
    teacher = network(kind, 3, 0)
    bench = _bench(kind, teacher=teacher, student=copy.deepcopy(teacher))
    with torch.no_grad():
        for stitch in (*bench.recipe.enter, *bench.recipe.leave):
            nn.init.eye_(stitch.weight)
            nn.init.zeros_(stitch.bias)
    inputs = bench.inputs(bench.images(3))
    found = bench.terms(bench.images(3))
    hard = bench.recipe.objective.hard(inputs.teacher, inputs.target)
    assert found["hybrid"].item() == pytest.approx(LABEL * hard.item(), rel=1e-6)
    if kind != "classification":
        same = bench.terms(bench.images(3), target=inputs.teacher)
        assert same["hybrid"].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("of", ["enter.0", "leave.1"])
def test_the_gradients_are_finite_differences(of):
    bench = _bench("counting")
    images, weight = bench.images(2), bench.recipe.get_submodule(of).weight
    (grad,) = torch.autograd.grad(bench.terms(images)["hybrid"], weight)
    for place in (0, weight.numel() - 1):
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight.flatten()[place] += step
                values.append(bench.terms(images)["hybrid"].item())
                weight.flatten()[place] -= step
        slope = (values[0] - values[1]) / 2e-5
        assert grad.flatten()[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)


def _losses(bench, images):
    inputs = bench.inputs(images)
    return bench.recipe.losses(inputs, *bench.recipe.blocks(inputs))


def test_each_hybrid_teaches_its_own_block_and_stitches():
    bench = _bench()
    recipe = bench.recipe
    parts = {
        "block 0": bench.student[0], "block 1": bench.student[1], "block 2": bench.student[2],
        "enter 0": recipe.enter[0], "enter 1": recipe.enter[1],
        "leave 0": recipe.leave[0], "leave 1": recipe.leave[1],
    }  # fmt: skip
    wanted = [
        {"block 0", "leave 0"}, {"enter 0", "block 1", "leave 1"}, {"enter 1", "block 2"},
    ]  # fmt: skip
    for loss, expected in zip(_losses(bench, bench.images(3)), wanted, strict=True):
        reached = set()
        for name, part in parts.items():
            weights = [p for p in part.parameters() if p.dim() > 1]
            grads = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            reached |= {name} if any(g is not None and g.abs().sum() > 0 for g in grads) else set()
        assert reached == expected
    assert all(p.grad is None for p in bench.teacher.parameters())


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_block_trained_alone_lowers_its_hybrids_loss(number):
    bench = _bench(fitted=True)
    images = bench.images(8)
    target = bench.teacher(images)
    bench_inputs = bench.inputs
    bench.inputs = lambda given: bench_inputs(given, target)
    optimizer = torch.optim.Adam(bench.student[number].parameters(), 0.02)
    losses = []
    for _ in range(25):
        losses.append(_losses(bench, images)[number])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_stitches_start_at_the_least_squares_fit():
    fitted, random = _bench(fitted=True), _bench()
    images = fitted.images(8)
    assert fitted.terms(images)["hybrid"] < random.terms(images)["hybrid"]


def _normed(width, seed):
    net = network("counting", width, seed)
    for block in (net[0], net[1]):
        block[0] = nn.Sequential(block[0], nn.BatchNorm2d(block[0].out_channels).double())
    return net


def test_stitches_fit_a_student_that_has_no_running_statistics_yet():
    """Its maps in inference mode, which the first crops come with, are of another size."""
    student = _normed(2, 1)
    with torch.no_grad():
        for block in (student[0], student[1]):
            block[0][0].weight.mul_(0.01)
    bench = Bench("m2mkd", "counting", teacher=_normed(4, 0), student=student)
    student.eval()
    inputs = bench.inputs(bench.images(8))
    bench.recipe.fit(inputs)
    made, _ = bench.recipe.blocks(inputs)
    for stitch, own, theirs in zip(bench.recipe.leave, made, inputs.teacher_features, strict=True):
        assert (stitch(own) - theirs).square().mean() < theirs.var()


def test_running_statistics_are_those_of_the_student_itself():
    """A hybrid normalises by its own batch, and leaves no trace."""
    student = _normed(2, 1)
    bench = Bench("m2mkd", "counting", teacher=_normed(4, 0), student=student)
    inputs = bench.inputs(bench.images(6))
    before = [{n: v.clone() for n, v in m.state_dict().items()} for m in (student, bench.teacher)]
    first = bench.recipe.extra(inputs)
    for state, net in zip(before, (student, bench.teacher), strict=True):
        assert all(torch.equal(v, state[n]) for n, v in net.state_dict().items())
    student.eval()
    again = bench.recipe.extra(inputs)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert {n.split(".")[0] for n in bench.recipe.state_dict()} == {"enter", "leave"}


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_near_and_zeros_are_finite(kind):
    bench = _bench(kind, dtype=torch.float32)
    images = bench.images(3)
    inputs = bench.inputs(images)
    half = {
        "teacher": inputs.teacher.bfloat16(),
        "teacher_features": [m.bfloat16() for m in inputs.teacher_features],
    }
    found = bench.terms(images)
    for name, value in bench.terms(images, **half).items():
        assert value.item() == pytest.approx(found[name].item(), rel=0.1, abs=0.02), name
    with torch.no_grad():
        for block in (bench.student[0], bench.student[1]):
            block[0].bias.fill_(-100.0)  # every ReLU is dead
    zeros = {"teacher_features": [torch.zeros_like(m) for m in inputs.teacher_features]}
    terms = bench.terms(torch.zeros_like(images), **zeros)
    parameters = [*bench.student.parameters(), *bench.recipe.parameters()]
    grads = torch.autograd.grad(sum(terms.values()), parameters, allow_unused=True)
    assert all(torch.isfinite(x).all() for x in (*terms.values(), *grads) if x is not None)


def test_hybrids_fade_and_a_training_that_is_cut_off_goes_on(spec, tmp_path):
    asked = spec("distill.recipe=m2mkd", "distill.steps=6")
    whole = trainer(asked, tmp_path / "whole").run()
    with pytest.raises(PowerCutError):
        stopped_at(trainer(asked, tmp_path / "cut"), 4).run()
    resumed = trainer(asked, tmp_path / "cut").run()
    assert all(torch.equal(resumed.best[n], value) for n, value in whole.best.items())
    last = whole.metrics[-1]
    assert set(last["terms"]) == {"hard", "count", "soft", "hybrid"}
    assert [row["weights"]["hybrid"] for row in whole.metrics[1:]] == [1, 0.6, 0]
