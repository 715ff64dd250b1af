"""Candidate pool of one search space: predicted latency and quality estimates."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, TypeVar

from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.latency_model.network_cost import NetworkCost, as_type, params
from kdcompile.latency_model.parameters import efficiencies_of
from kdcompile.latency_model.predict import estimate, kernel_ms
from kdcompile.models.blocks import fold
from kdcompile.search.pareto import Evidence, Point, keeps
from kdcompile.search.quality_predictor import Capacity, ExpectedLoss, QualityPredictor
from kdcompile.search.short_distillation import Finalist
from kdcompile.search.spaces.base import Architecture, Costed, Space, candidates, elite, identity
from kdcompile.targets import Target
from kdcompile.tasks.metric import Metric

Student = TypeVar("Student", bound=Point | Costed)
NEAR = 60  # candidates below the budget that are kept as points, of the best and of each make
VISIBLE = 0.1  # an increase of the metric by this share is the unit of the prior


@dataclass(frozen=True)
class Problem:
    """What is searched for.

    Args:
        spec: its sections seed, task, teacher, data, student, search, distill, export, compile.
        target: the device.
        precision: at which latencies are compared.
        metric: of quality.
        teacher: the network.
        point: the teacher's; its quality is its validation metric.
        cost: the teacher's kernels and estimate.
        build: an untrained student from its architecture.
        distil: students for a short time.
    """

    spec: Spec
    target: Target
    precision: str
    metric: Metric
    teacher: nn.Module
    point: Point
    cost: NetworkCost
    build: Callable[[Mapping[str, Any]], nn.Module]
    distil: Callable[[Sequence[Mapping[str, Any]]], list[Finalist]]

    def kernels(self, space: Space, architecture: Architecture) -> NetworkCost:
        """A student's kernels with their estimate."""
        kernels = space.kernels(architecture, as_type(self.precision))
        return NetworkCost(kernels, estimate(kernels, self.target, self.precision), self.cost.shape)


class CandidatePool:
    """One space in a search: its candidates with their costs, and a predictor of their quality."""

    def __init__(self, problem: Problem, space: Space, number: int) -> None:
        """Draw the candidates and predict their latencies.

        Args:
            problem: what is searched for.
            space: where.
            number: of candidates.
        """
        self.problem, self.space = problem, space
        self._efficiencies = efficiencies_of(problem.target)  # looked up once for all candidates
        unit = problem.metric.allowance(problem.point.quality, VISIBLE)
        self._predictor = QualityPredictor.prior(problem.point.macs, max(unit, 1e-9))
        self._found = candidates(space, number, self._cost, Random(problem.spec.seed))
        self._uniform = {identity(a) for a in space.uniform_students()}
        self._finalists: dict[str, Finalist] = {}

    @property
    def is_possible(self) -> bool:
        """Whether any candidate keeps the budget."""
        budget, teacher = self.problem.spec.student.budget, self.problem.point
        return any(keeps(budget, candidate, teacher) for candidate in self._found)

    @property
    def smallest(self) -> Point:
        """The candidate that comes nearest to the budget."""
        by_macs = self.problem.spec.student.budget.macs is not None
        nearest = min(self._found, key=lambda c: c.macs if by_macs else c.ms)
        return self._point(nearest.architecture)

    def points(
        self, teacher: Point, known: Sequence[Point] = (), factor: float = 1.0
    ) -> list[Point]:
        """The promising candidates: the best guesses, also of each make, and uniform student.

        Args:
            teacher: what a speed-up is against.
            known: points of this search, which are left out.
            factor: that measured latencies are of predicted ones.
        """
        budget = self.problem.spec.student.budget
        moved = [replace(c, ms=c.ms * factor) for c in self._found]
        within = sorted((c for c in moved if keeps(budget, c, teacher)), key=lambda c: c.guess)
        uniform = [c for c in within if identity(c.architecture) in self._uniform][:1]
        chosen = [
            c.architecture
            for c in (
                *within[:NEAR],
                *self._of_each_make(within)[:NEAR],
                *uniform,
                *elite(self._found),
            )
        ]
        before = {identity(dict(p.architecture)) for p in known}
        new = {name: a for a in chosen if (name := identity(a)) not in before}
        return [self._point(architecture) for architecture in new.values()]

    def distil_finalists(self, points: Sequence[Point], teacher: Point) -> list[Point]:
        """These points of this space with what short distillations of the finalists showed."""
        finalists = self._choose_finalists(points, teacher)
        found = self.problem.distil([p.architecture for p in finalists])
        self._finalists = {identity(dict(f.architecture)): f for f in found}
        distilled = [self._capacity(p) for p in finalists if self.finalist(p) is not None]
        became = [ExpectedLoss(f.increase, f.increase_sd) for f in found]
        self._predictor = self._predictor.fitted(distilled, became)
        made = []
        for point in points:
            finalist = self.finalist(point)
            if finalist is None:
                worse = self._predictor.expected_loss(self._capacity(point))
                made.append(self._with_quality(point, worse, "predicted"))
            else:
                worse = ExpectedLoss(finalist.increase, finalist.increase_sd)
                made.append(self._with_quality(point, worse, "distilled"))
        return made

    def finalist(self, point: Point) -> Finalist | None:
        """What a short distillation made of a student, where it had one."""
        return self._finalists.get(identity(dict(point.architecture)))

    def _choose_finalists(self, points: Sequence[Point], teacher: Point) -> list[Point]:
        """The best within the budget, of different makes.

        The best uniform student is among them as a control: what was searched for must beat it.
        """
        budget = self.problem.spec.student.budget
        within = [p for p in points if keeps(budget, p, teacher)]
        within.sort(key=lambda p: self._predictor.expected_loss(self._capacity(p)).mean)
        uniform = [p for p in within if identity(dict(p.architecture)) in self._uniform][:1]
        rest = [p for p in self._of_each_make(within) if p not in uniform]
        # after the first guess, so that a single finalist is what was searched for
        return [*rest[:1], *uniform, *rest[1:]][: self.problem.spec.search.finalists]

    def _of_each_make(self, students: Sequence[Student]) -> list[Student]:
        """The first student of each make, then the second of each, and so on.

        A make is a resolution and a number of missing layers: how much these cost depends on the
        task, which a short distillation of the best of each shows.
        """
        groups: dict[tuple[float, ...], list[Student]] = {}
        for student in students:
            make = (*resolution(student.architecture), self._capacity(student).missing)
            groups.setdefault(make, []).append(student)
        rank = {id(s): n for group in groups.values() for n, s in enumerate(group)}
        return sorted(students, key=lambda s: rank[id(s)])

    def _capacity(self, point: Point | Costed) -> Capacity:
        return Capacity(point.macs, self.space.missing_layers(dict(point.architecture)))

    def _cost(self, architecture: Architecture) -> tuple[float, int, float]:
        problem = self.problem
        kernels = self.space.kernels(architecture, as_type(problem.precision))
        ms = kernel_ms(kernels, problem.target, problem.precision, self._efficiencies)
        capacity = Capacity(sum(k.macs for k in kernels), self.space.missing_layers(architecture))
        return ms, capacity.macs, self._predictor.expected_loss(capacity).mean

    def _point(self, architecture: Architecture) -> Point:
        """A student as a point, with the quality that is expected of it."""
        cost = self.problem.kernels(self.space, architecture)
        point = Point(
            architecture=architecture,
            latency=cost.estimate,
            quality=math.nan,
            quality_sd=math.nan,
            evidence="predicted",
            macs=cost.macs,
            params=params(fold(self.problem.build(architecture))),
        )
        worse = self._predictor.expected_loss(self._capacity(point))
        return self._with_quality(point, worse, "predicted")

    def _with_quality(self, point: Point, worse: ExpectedLoss, evidence: Evidence) -> Point:
        sign = -1.0 if self.problem.metric.higher else 1.0
        # an expected increase may be more than there is to lose
        quality = self.problem.metric.possible(self.problem.point.quality + sign * worse.mean)
        return replace(point, quality=quality, quality_sd=worse.sd, evidence=evidence)


def resolution(architecture: Mapping[str, Any]) -> tuple[float, ...]:
    """Input scale and strides of a staged student; the teacher's own layers have one alone."""
    strides = [stage["stride"] for stage in architecture.get("stages", ())]
    return (architecture.get("input_scale", 1.0), *strides)
