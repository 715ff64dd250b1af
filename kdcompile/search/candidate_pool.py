"""Candidate pool of one search space: predicted latency and quality estimates."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random
from typing import Any

from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.latency_model.network_cost import NetworkCost, as_type, params
from kdcompile.latency_model.parameters import efficiencies_of
from kdcompile.latency_model.predict import estimate, kernel_ms
from kdcompile.models.blocks import fold
from kdcompile.search.pareto import Evidence, Point, keeps
from kdcompile.search.predictors.quality_predictor import QualityPredictor
from kdcompile.search.predictors.sensitivity import ExpectedLoss
from kdcompile.search.predictors.short_distillation import fit_correction
from kdcompile.search.spaces.base import Architecture, Costed, Space, candidates, elite, identity
from kdcompile.targets import Target
from kdcompile.tasks.metric import Metric

log = logging.getLogger("kdcompile")
ROUNDS = 3  # of measuring, then drawing anew
SHARES = ROUNDS + 2  # of the candidates: one by capacity, one before the rounds, one after each
NEAR = 60  # candidates below the budget that are kept as points, the best guesses


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
        priced: the teacher's kernels and estimate.
        build: an untrained student from its architecture.
    """

    spec: Spec
    target: Target
    precision: str
    metric: Metric
    teacher: nn.Module
    point: Point
    cost: NetworkCost
    build: Callable[[Mapping[str, Any]], nn.Module]

    def kernels(self, space: Space, architecture: Architecture) -> NetworkCost:
        """A student's kernels with their estimate."""
        kernels = space.kernels(architecture, as_type(self.precision))
        return NetworkCost(kernels, estimate(kernels, self.target, self.precision), self.cost.shape)


class CandidatePool:
    """One space in a search: its candidates so far, each priced once, and its predictor."""

    def __init__(
        self,
        problem: Problem,
        space: Space,
        make_predictor: Callable[[], QualityPredictor],
        number: int,
    ) -> None:
        """Draw the first share of the candidates, by capacity alone.

        Args:
            problem: what is searched for.
            space: where.
            make_judge: called once the budget is known to be possible.
            number: of candidates, in all.
        """
        self.problem, self.space, self._make_predictor = problem, space, make_predictor
        self._draw = Random(problem.spec.seed)
        self._efficiencies = efficiencies_of(problem.target)  # looked up once for all candidates
        self._known: dict[str, tuple[Architecture, float, int]] = {}
        # and one once students were timed
        self._share = number // (SHARES + (problem.spec.search.measure > 0))
        self._found = self._draw_share(lambda a: -math.log(1 + self._cost(a)[1]), ())

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
        return self._point(nearest.architecture, ExpectedLoss(math.nan, math.nan), "proxy")

    @cached_property
    def predictor(self) -> QualityPredictor:
        """Made when it is first needed."""
        return self._make_predictor()

    def learn(self) -> list[Point]:
        """The most promising candidates, once the predictor has measured what it may."""
        likely = self._likely(self._draw_share(self.predictor.guess, ()), self.problem.point)
        left = self.problem.spec.search.blocks_trained
        for number in range(ROUNDS):
            left -= self.predictor.learn(likely, math.ceil(left / (ROUNDS - number)))
            found = self._draw_share(self.predictor.guess, likely)
            likely = self._likely(found, self.problem.point)
            log.info("search: round %d of %d: %d candidates", number + 1, ROUNDS, len(found))
        return [self._point(a, self.predictor.expected_loss(a), "blocks") for a in likely]

    def draw_after_timing(
        self, known: Sequence[Point], teacher: Point, factor: float
    ) -> list[Point]:
        """Points that are promising now, next to those known.

        Args:
            known: points of this search.
            teacher: with its measured latency.
            factor: that measured latencies are of predicted ones.
        """
        before = {identity(dict(p.architecture)) for p in known}
        likely = self._likely(self._draw_share(self.predictor.guess, ()), teacher, factor)
        new = [a for a in likely if identity(a) not in before]
        return [self._point(a, self.predictor.expected_loss(a), "blocks") for a in new]

    def distil_finalists(self, points: Sequence[Point], teacher: Point) -> list[Point]:
        """These points of this space with what short distillations of the finalists showed."""
        options, metric = self.problem.spec.search, self.problem.metric
        within = [p for p in points if keeps(self.problem.spec.student.budget, p, teacher)]
        within.sort(key=lambda p: float(metric.worse_by(p.quality, 0.0)))
        finalists = of_each_resolution(within)[: options.finalists]
        if not finalists:
            return list(points)
        results = self.predictor.distil([p.architecture for p in finalists], options.finalist_steps)
        correct = fit_correction(
            [self.predictor.expected_loss(r.architecture) for r in results], results
        )
        became = {identity(dict(r.architecture)): r for r in results}
        made = []
        for point in points:
            result = became.get(identity(dict(point.architecture)))
            if result is None:
                worse = correct(self.predictor.expected_loss(point.architecture))
                made.append(self._with_quality(point, worse, "blocks"))
            else:
                worse = ExpectedLoss(result.increase, result.increase_sd)
                made.append(self._with_quality(point, worse, "distilled"))
        return made

    def _draw_share(
        self, guess: Callable[[Architecture], float], start: Sequence[Architecture]
    ) -> list[Costed]:
        """Another share; all candidates so far, with this guess."""
        drawn = candidates(self.space, self._share, self._cost, guess, self._draw, start)
        guessed = {identity(c.architecture): c.guess for c in drawn}
        return [
            Costed(a, ms, macs, guessed[name] if name in guessed else guess(a))
            for name, (a, ms, macs) in self._known.items()
        ]

    def _likely(
        self, found: Sequence[Costed], teacher: Point, factor: float = 1.0
    ) -> list[Architecture]:
        """The best guesses that keep the budget, then the best at each latency."""
        moved = [replace(c, ms=c.ms * factor) for c in found]
        budget = self.problem.spec.student.budget
        within = sorted((c for c in moved if keeps(budget, c, teacher)), key=lambda c: c.guess)
        chosen = [c.architecture for c in (*within[:NEAR], *elite(found))]
        return list({identity(a): a for a in chosen}.values())

    def _cost(self, architecture: Architecture) -> tuple[float, int]:
        name = identity(architecture)
        if name not in self._known:
            problem = self.problem
            kernels = self.space.kernels(architecture, as_type(problem.precision))
            ms = kernel_ms(kernels, problem.target, problem.precision, self._efficiencies)
            self._known[name] = (architecture, ms, sum(k.macs for k in kernels))
        return self._known[name][1:]

    def _point(self, architecture: Architecture, worse: ExpectedLoss, evidence: Evidence) -> Point:
        """A student as a point; `worse` is how much worse than the teacher it should be."""
        cost = self.problem.kernels(self.space, architecture)
        point = Point(
            architecture=architecture,
            latency=cost.estimate,
            quality=math.nan,
            quality_sd=math.nan,
            evidence=evidence,
            macs=cost.macs,
            params=params(fold(self.problem.build(architecture))),
        )
        return self._with_quality(point, worse, evidence)

    def _with_quality(self, point: Point, worse: ExpectedLoss, evidence: Evidence) -> Point:
        sign = -1.0 if self.problem.metric.higher else 1.0
        # a sum of losses may be more than there is to lose
        quality = self.problem.metric.possible(self.problem.point.quality + sign * worse.mean)
        return replace(point, quality=quality, quality_sd=worse.sd, evidence=evidence)


def of_each_resolution(points: Sequence[Point]) -> list[Point]:
    """The first point of each resolution, then the second of each, and so on.

    Evidence by blocks compares students of equal resolutions well; across them it blames a coarse
    student for detail that the output may not need. So each resolution sends its best.
    """
    groups: dict[tuple[float, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(_resolution(point.architecture), []).append(point)
    rank = {id(p): n for group in groups.values() for n, p in enumerate(group)}
    return sorted(points, key=lambda p: rank[id(p)])


def _resolution(architecture: Mapping[str, Any]) -> tuple[float, ...]:
    """Input scale and strides of a staged student; the teacher's own layers have one alone."""
    strides = [stage["stride"] for stage in architecture.get("stages", ())]
    return (architecture.get("input_scale", 1.0), *strides)
