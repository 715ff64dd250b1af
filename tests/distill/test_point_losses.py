"""Label losses of counting that take points: against plain computations, gradients, trainings."""

import math

import numpy as np
import pytest
import torch
from tiny_training import trainer
from torch.autograd import gradcheck

from kdcompile.config.distill import Distill
from kdcompile.core.errors import KDError
from kdcompile.data.augment import CropSampler
from kdcompile.data.photo import Photo
from kdcompile.data.point_labels import PointLabels, as_maps, read
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.targets import DensityTargets
from kdcompile.distill import transport as transport_module
from kdcompile.distill.bayesian import BayesianObjective
from kdcompile.distill.matching import MatchingObjective, matching, spread
from kdcompile.distill.pilot import Arm
from kdcompile.distill.registry import refuse_recipes
from kdcompile.distill.transport import potentials, transport

CPU = torch.device("cpu")
SIZE = (5, 6)
LOSSES = {"bayesian": BayesianObjective, "dm": MatchingObjective}


def _labels(*crops, reach=20.0, sigma=1.0, side=6):
    """Labels of crops of (x, y) in cells; those of fewer points are padded."""
    most = max(len(points) for points in crops)
    rows = torch.zeros(len(crops), max(most, 1), 6)
    rows[:, :, 3:] = torch.tensor([reach, sigma, side])
    for row, points in zip(rows, crops, strict=True):
        for place, point in zip(row, points, strict=False):
            place[:3] = torch.tensor([*point, 1.0])
    return rows


CROPS = ([(1.2, 0.7), (4.4, 3.1), (4.6, 3.3)], [(5.9, 4.9)], [])


def _density(seed=0, size=SIZE, crops=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(crops, 1, *size, generator=generator, dtype=torch.float64)


def _plain_bayesian(density, points, distance, sigma):
    """The formula of the paper, cell by cell."""
    expected, background = np.zeros(len(points)), 0.0
    for row, column in np.ndindex(*density.shape):
        away = [math.dist((column + 0.5, row + 0.5), point) for point in points]
        likely = [math.exp(-(a**2) / (2 * sigma**2)) for a in away]
        beside = math.exp(-((distance - min(away)) ** 2) / (2 * sigma**2)) if away else 1.0
        every = sum(likely) + beside
        expected += density[row, column] * np.array(likely) / every
        background += density[row, column] * beside / every
    return np.abs(1 - expected).sum() + abs(background)


@pytest.mark.parametrize("reduction", ["mean", "paper"])
def test_bayesian_loss_is_that_of_the_paper(reduction):
    labels, density = _labels(*CROPS, sigma=0.8), _density()
    objective = BayesianObjective(Distill(reduction=reduction), labels)
    found = objective.terms(density, labels, None)
    wanted = [_plain_bayesian(d[0].numpy(), p, 0.15 * 20, 0.8)
              for d, p in zip(density, CROPS, strict=True)]  # fmt: skip
    scale = 4 / 3 if reduction == "mean" else 1.0  # four points in three crops
    assert set(found) == {"hard"}
    assert found["hard"].item() == pytest.approx(np.mean(wanted) / scale, rel=1e-5)


def _plain_transport(a, b, eps, iterations=20_000):
    """W between all cells at once, without over-relaxation, and the coupling."""
    places = np.array(list(np.ndindex(*a.shape)))
    cost = ((places[:, None] - places[None]) ** 2).sum(2)
    kernel = np.exp(-cost / eps) * np.outer(a, b)
    u = np.ones(a.size)
    for _ in range(iterations):
        v = 1 / (kernel / b.ravel()).T.dot(u)
        u = 1 / (kernel / a.ravel()[:, None]).dot(v)
    plan = u[:, None] * kernel * v
    relative = plan / np.outer(a, b)
    return (plan * cost).sum() + eps * (plan * np.log(relative)).sum(), plan


def test_transport_is_that_of_a_dense_computation():
    a, b = (x[:, 0] / x.sum((1, 2, 3))[:, None, None] for x in (_density(1), _density(2) ** 4))
    found = transport(a, b)
    for value, one, other in zip(found, a.numpy(), b.numpy(), strict=True):
        wanted, plan = _plain_transport(one, other, transport_module.EPS)
        assert plan.sum(1) == pytest.approx(one.ravel(), rel=1e-6)
        assert value.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("side", [32, 64])
def test_mass_far_away_is_found(side):
    """One cell to the opposite corner: the way is known, and no sum is lost in float64."""
    a, b = (torch.zeros(1, side, side, dtype=torch.float64) for _ in range(2))
    a[0, 0, 0] = b[0, -1, -1] = 1.0
    f, _ = potentials(a, b, 100)
    assert transport(a, b).item() == pytest.approx(2 * (side - 1) ** 2)
    cells = torch.arange(side, dtype=torch.float64)
    away = (cells[:, None] - side + 1) ** 2 + (cells[None] - side + 1) ** 2
    assert (f - f[0, -1, -1])[0].numpy() == pytest.approx(away.numpy(), abs=1e-6)


def test_a_hundred_iterations_are_nearly_all_of_the_gradient(monkeypatch):
    """Within 5 % of the potential that ten times as many give; without over-relaxation it is not.

    A crowd with a wrong gradient in space, on the grid of a crop of 256 pixels: the slowest case.
    """
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(2, 300, 2, generator=generator) * 32
    target = spread(places, torch.ones(2, 300) > 0, (32, 32)).double()
    wrong = target * torch.linspace(0.5, 1.5, 32) + 0.05
    a, b = (x / x.sum((1, 2), keepdim=True) for x in (wrong, target))

    def potential(iterations):
        f = potentials(a, b, iterations)[0]
        return f - (f * a).sum((1, 2), keepdim=True)

    whole = potential(1000)

    def gap():
        return ((potential(100) - whole).square() * a).sum().sqrt().item()

    limit = 0.05 * (whole.square() * a).sum().sqrt().item()
    assert gap() < limit
    monkeypatch.setattr(transport_module, "BEYOND", 1.0)
    assert gap() > limit


def test_points_are_shared_among_the_nearest_cells():
    places = torch.tensor([[[1.5, 2.5], [2.0, 2.75], [0.1, 4.9], [3.0, 3.0]]])
    shown = torch.tensor([[True, True, True, False]])
    found = spread(places, shown, SIZE)[0]
    wanted = torch.zeros(SIZE)
    wanted[2, 1] += 1.0
    wanted[2, 1:3] += 0.375
    wanted[3, 1:3] += 0.125
    wanted[4, 0] += 1.0  # the centre of the corner's cell is the nearest there is
    assert torch.allclose(found, wanted)


def test_matching_is_the_sum_of_its_terms():
    """Count, 0.1 W in squared eighths of a cell, 0.01 N total variation; no points, the count."""
    labels, density = _labels(*CROPS), _density() - 0.2
    points = read(labels)
    target = spread(points.places, points.shown, SIZE).double()
    found = matching(density[:, 0], target)
    own = density[:, 0].clamp_min(0)
    own = own / own.sum((1, 2), keepdim=True)
    for i, count in enumerate((3, 1)):
        b = target[i] / count
        moved = 64 * transport(own[i : i + 1], b[None]).item()
        wanted = abs(density[i].sum().item() - count) + 0.1 * moved
        wanted += 0.01 * count * (own[i] - b).abs().sum().item() / 2
        assert found[i].item() == pytest.approx(wanted)
    assert found[2].item() == pytest.approx(abs(density[2].sum().item()))
    objective = MatchingObjective(Distill(reduction="paper"), labels)
    term = objective.terms(density, labels, None)["hard"]
    assert term.item() == pytest.approx(found.mean().item(), rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_in_float64(name):
    labels, density = _labels([(1.2, 0.7), (2.4, 2.1)], [(0.4, 1.3)]), _density(3, (3, 3), 2)
    objective = LOSSES[name](Distill(), labels)
    density.requires_grad_()
    assert gradcheck(lambda d: objective.terms(d, labels, None)["hard"], (density,), atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_what_is_right_costs_least(name):
    """Half of the people, those of another place, nobody: each is worse than the points' map."""
    labels = _labels([(1.5, 1.5), (4.5, 3.5), (4.5, 4.5)], reach=20.0, sigma=0.5)
    right = torch.zeros(1, 1, 6, 6)
    right[0, 0, [1, 3, 4], [1, 4, 4]] = 1.0
    objective = LOSSES[name](Distill(), labels)

    def loss(density):
        return objective.hard(density, labels).item()

    for wrong in (right / 2, right.flip(3), torch.zeros_like(right), right + 0.1):
        assert loss(wrong) > loss(right) + 0.02


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_and_nothing_below_zero(name):
    """Under autocast the student is half precision; a network may say that nobody is there."""
    labels = _labels(*CROPS)
    objective = LOSSES[name](Distill(), labels)
    for density in (_density().bfloat16(), -_density().float()):
        own = density.requires_grad_()
        term = objective.hard(own, labels)
        term.backward()
        assert term.dtype in (torch.float32, torch.float64)
        assert own.grad.isfinite().all()
        assert own.grad.any()


def test_labels_are_the_points_that_the_crop_shows():
    """Their maps are those of `DensityTargets`, and a unit is the photo's shorter side, zoomed."""
    random, blank = np.random.default_rng(0), np.zeros((60, 80, 1), np.uint8)
    photos = [
        Photo(str(n), np.float32(random.random((n, 2)) * [80, 60]), array=blank) for n in (30, 0, 7)
    ]
    maps, labels = (kind(photos, 4, 1.5, CPU) for kind in (DensityTargets, PointLabels))
    grey = Preprocess(1, (0.5,), (0.25,), (32, 32), (512, 512))
    sampler = CropSampler(photos, grey, Distill(crop=32, batch=6), labels, 0, CPU)
    batch = sampler.batch(0)
    assert torch.allclose(as_maps(batch.target), maps(sampler.draw(0), 32), atol=1e-5)
    assert batch.inside.shape == (6, 1, 8, 8)
    points = read(batch.target)
    zoomed = 60 / 4 * np.array([0.7, 1.4])
    assert ((points.reach > zoomed[0] - 0.5) & (points.reach < zoomed[1] + 0.5)).all()
    assert (points.sigma.unique().item(), points.side.unique().item()) == (1.5, 8.0)


@pytest.mark.parametrize("name", LOSSES)
def test_training_learns_from_points(spec, tmp_path, name):
    sets = (f"distill.hard={name}", "distill.recipe=kd", "distill.steps=12", "distill.lr=5e-3")
    state = trainer(spec(*sets), tmp_path / "work").run()
    rows = [row["terms"] for row in state.metrics if "terms" in row]
    assert set(rows[0]) == {"hard", "soft"}
    assert rows[-1]["hard"] < rows[0]["hard"]


def test_where_points_cannot_be_had(spec):
    for recipe in ("mixup", "reliability", "kd+mixup"):
        with pytest.raises(KDError) as caught:
            refuse_recipes(spec("distill.hard=dm", f"distill.recipe={recipe}"))
        assert caught.value.code == "label-loss"
        refuse_recipes(spec(f"distill.recipe={recipe}"))
    for kind in ("regression", "classification"):
        with pytest.raises(KDError, match=f"{kind} has no density") as caught:
            refuse_recipes(spec("distill.hard=bayesian", "distill.recipe=kd", f"task.kind={kind}"))
        assert caught.value.code == "label-loss"


def test_losses_have_one_thread_and_give_the_others_back(monkeypatch):
    labels, seen, before = _labels(*CROPS), [], torch.get_num_threads()
    objective = BayesianObjective(Distill(), labels)

    def losses(density, points):
        seen.append(torch.get_num_threads())
        return density.sum((1, 2))

    monkeypatch.setattr(objective, "losses", losses)
    torch.set_num_threads(2)
    try:
        objective.hard(_density(), labels)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)


def test_a_pilot_leaves_out_the_weight_of_blocks_where_points_are_learnt(spec):
    sets = ("distill.recipe=auto", "distill.weights={hard=2.0, count=3.0}")
    assert Arm("kd").spec(spec(*sets)).distill.weights == {"hard": 2.0, "count": 3.0}
    assert Arm("kd").spec(spec(*sets, "distill.hard=dm")).distill.weights == {"hard": 2.0}
