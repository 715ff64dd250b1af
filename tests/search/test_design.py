"""The search: short distillations decide, multiply-adds only order the candidates."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from staged_ground import network, write_build

from kdcompile.core.errors import KDError
from kdcompile.latency_model.network_cost import Network, params
from kdcompile.models.blocks import fold
from kdcompile.models.cuts import cuts
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search import driver
from kdcompile.search.candidate_pool import Problem, resolution
from kdcompile.search.driver import search
from kdcompile.search.on_device import Measurement
from kdcompile.search.pareto import Point, keeps
from kdcompile.search.short_distillation import Finalist
from kdcompile.search.spaces.base import identity
from kdcompile.search.spaces.staged import StagedSpace
from kdcompile.targets import load
from kdcompile.tasks.metric import MAE, TOP1

SHAPE = [1, 1, 16, 16]
TEACHER = 4.0  # its metric
SMALL = ["search.candidates=30", "search.finalists=2", "student.family=search"]


class Distiller:
    """Short distillations of a fixed outcome: what is lost falls with the multiply-adds."""

    def __init__(self, problem, space, turn):
        self.problem, self.space, self.turn, self.asked = problem, space, turn, []

    def __call__(self, architectures):
        self.asked = [dict(a) for a in architectures]
        made = []
        for number, architecture in enumerate(architectures):
            macs = sum(kernel.macs for kernel in self.space.kernels(architecture, "fp32"))
            loss = self.turn(number, 1e4 / macs)
            made.append(Finalist(architecture, loss, 0.01, 0.0, 0.0, 4, 1.0, Path()))
        return made


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A problem and its space, of a budget and settings."""
    folder = tmp_path_factory.mktemp("design")
    load_spec, target = write_build(folder), load("cpu")
    torch.manual_seed(0)
    teacher = Network(network().eval(), SHAPE)
    priced = teacher.cost(target, "fp32")
    macs = sum(kernel.macs for kernel in priced.kernels)
    size = params(teacher.module)
    point = Point({"family": "teacher"}, priced.estimate, TEACHER, 0.0, "measured", macs, size)
    found = cuts(teacher.module, SHAPE)

    def made(budget, *sets):
        spec = load_spec(f"student.budget={{{budget}}}", *SMALL, *sets)
        space = StagedSpace(found, SHAPE, 1, "dense", 2, 2, spec.search.blocks, [1.0, 0.5], 0)
        problem = Problem(
            spec, target, "fp32", MAE, teacher.module, point, priced,
            lambda a: student_from_architecture(teacher.module, a, folder),
            lambda a: pytest.fail("students were distilled"),
        )  # fmt: skip
        return problem, space

    return made


def _search(make, budget, *sets, turn=lambda number, loss: loss):
    problem, space = make(budget, *sets)
    distiller = Distiller(problem, space, turn)
    found, finalist, timing = search(replace(problem, distil=distiller), [space], None, Path())
    if finalist is not None:
        assert finalist.architecture == found.chosen.architecture
    return found, distiller, timing


def test_the_best_that_keeps_the_budget_is_chosen(make):
    found, distiller, timing = _search(make, "macs=30000", "search.finalists=0")
    within = [p for p in found.points if p.macs <= 30000]
    assert found.chosen in within
    assert found.chosen.quality == min(p.quality for p in within)
    assert found.chosen.macs == max(p.macs for p in within)
    assert any(p.macs > 30000 for p in found.points)
    assert not distiller.asked
    assert timing is None
    assert found.explanation


def test_branches_that_fold_are_counted_as_the_one_convolution_that_ships(make):
    problem, _ = make("macs=30000")
    found, _, _ = _search(make, "macs=30000", "search.finalists=0", "search.blocks=['repvgg']")
    for point in found.points[:4]:
        student = problem.build(point.architecture)
        assert point.params < params(student)
        assert point.params == params(fold(student))


def test_the_same_seed_the_same_search(make):
    first, again = (_search(make, "latency_ms=0.04")[0].to_json() for _ in range(2))
    assert first == again
    other, _, _ = _search(make, "latency_ms=0.04", "seed=7")
    assert [p["architecture"] for p in other.to_json()["points"]] != [
        p["architecture"] for p in first["points"]
    ]


def test_more_candidates_find_no_worse_a_student(make):
    few, many = (
        _search(make, "macs=30000", f"search.candidates={n}", "search.finalists=0")[0]
        for n in (20, 150)
    )
    assert many.chosen.quality <= few.chosen.quality


@pytest.mark.parametrize(("metric", "best", "worst"), [(TOP1, 1.0, 0.0), (MAE, 0.0, 1e3 + 0.9)])
def test_an_expected_quality_is_one_that_the_metric_can_have(make, metric, best, worst):
    problem, space = make("macs=30000", "search.finalists=1")
    point = replace(problem.point, quality=0.9)
    problem = replace(problem, metric=metric, point=point)
    for turn, quality in ((-1e3, best), (1e3, worst)):
        distiller = Distiller(problem, space, lambda number, loss, turn=turn: turn)
        found, _, _ = search(replace(problem, distil=distiller), [space], None, Path())
        assert found.chosen.quality == quality


def test_finalists_decide(make):
    hoped, distiller, _ = _search(make, "macs=30000")
    first, second = distiller.asked
    assert identity(dict(hoped.chosen.architecture)) == identity(first)
    found, distiller, _ = _search(make, "macs=30000", turn=lambda number, loss: 3.0 - number)
    assert distiller.asked == [first, second]
    assert identity(dict(found.chosen.architecture)) == identity(second)
    assert found.chosen.evidence == "distilled"
    assert found.chosen.quality == TEACHER + 2.0
    rest = [p for p in found.points if p.evidence == "predicted" and p.macs > 30000]
    before = {identity(dict(p.architecture)): p.quality for p in hoped.points}
    assert rest  # what the finalists lost, they are thought to lose too
    assert all(p.quality > before[identity(dict(p.architecture))] for p in rest)


@pytest.mark.parametrize(
    ("budget", "name"),
    [("macs=10", "macs"), ("latency_ms=1e-6", "latency_ms"), ("speedup=900", "")],
)
def test_an_impossible_budget_is_refused_before_anything_is_trained(make, budget, name):
    problem, space = make(budget)
    with pytest.raises(KDError) as refused:
        search(problem, [space], None, Path())
    error = refused.value
    assert error.code == "budget-impossible"
    assert budget.partition("=")[0] in error.message
    fix = re.search(r"budget = \{ (\w+ = [^ ]+) \}", error.fix).group(1)
    assert fix.startswith(name)
    found, _, _ = _search(make, fix)  # the fix is one
    assert keeps(found.budget, found.chosen, found.teacher)


def _timed_at(monkeypatch, factor):
    """Timing that finds everything so many times slower than predicted."""
    calls = []

    def measure(teacher, students, precision, spec, target, board, folder):
        calls.append(len(students))
        predicted = [Network(s.eval(), SHAPE).cost(target, precision).estimate for s in students]
        own = Network(teacher, SHAPE).cost(target, precision).estimate
        ms = tuple(factor * estimate.ms for estimate in predicted)
        why = (None,) * len(ms)
        return Measurement(precision, "fp32", factor * own.ms, ms, why, "here", "plain", 0.01)

    monkeypatch.setattr(driver, "measure", measure)
    return calls


def test_measured_latencies_correct_the_others(make, monkeypatch):
    calls = _timed_at(monkeypatch, 1.2)
    sets = ("latency_ms=0.04", "search.candidates=60")
    plain, _, _ = _search(make, *sets)
    found, _, timing = _search(make, *sets, "search.measure=3")
    assert calls == [3]
    assert timing.ms
    assert sum(p.measured_ms is not None for p in found.points) == 3
    assert found.correction.pairs == 4  # the teacher is one
    others = {identity(dict(p.architecture)): p.latency.ms for p in plain.points}
    moved = [
        p.latency.ms / others[identity(dict(p.architecture))]
        for p in found.points
        if identity(dict(p.architecture)) in others
    ]
    assert moved
    assert all(1.1 < ratio < 1.25 for ratio in moved)
    assert found.teacher.ms == pytest.approx(1.2 * plain.teacher.ms)
    assert found.chosen.ms <= 0.04


def test_a_device_that_is_not_the_target_is_refused_before_anything_is_trained(make):
    problem, space = make("macs=30000", "search.measure=2")
    problem = replace(problem, target=load("jetson"), precision="fp16")
    with pytest.raises(KDError) as refused:
        search(problem, [space], None, Path())
    assert refused.value.code == "measure-foreign"
    assert "--via ssh://USER@BOARD" in refused.value.fix


def test_a_budget_that_measuring_shows_to_be_impossible(make, monkeypatch):
    _timed_at(monkeypatch, 100.0)
    with pytest.raises(KDError, match=r"latency_ms = 0\.04") as refused:
        _search(make, "latency_ms=0.04", "search.measure=3")
    assert refused.value.code == "budget-impossible"
    assert "budget = { latency_ms" in refused.value.fix


def test_each_resolution_sends_its_best(make):
    _, distiller, _ = _search(make, "macs=30000", "search.finalists=4")
    assert len({resolution(a) for a in distiller.asked}) > 1


def test_the_makes_of_a_student():
    fine = {"stages": [{"stride": 1}, {"stride": 2}], "input_scale": 0.5}
    assert resolution(fine) == (0.5, 1, 2)
    assert resolution({"modules": {}}) == (1.0,)
