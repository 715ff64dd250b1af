"""Pareto front of latency and expected quality, and the student that a budget picks.

A point is on the front where no other is as fast and as good. Both sides are uncertain, so that a
point near the front may belong to it: it is likely there unless one of the front beats it in both
with a probability of `SURE`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from kdcompile.config.spec import Budget
from kdcompile.core.errors import KDError
from kdcompile.latency_model.correction import NOISE, SHARED, log_sd
from kdcompile.latency_model.predict import Estimate
from kdcompile.search.spaces.base import Costed
from kdcompile.tasks.metric import Metric

Evidence = Literal["proxy", "predicted", "distilled", "measured"]
SURE = 0.9


@dataclass(frozen=True)
class Point:
    """A student: what it will take and what it will be worth.

    Args:
        architecture: as `student_from_architecture` reads it.
        latency: predicted, at the precision that the budget is evaluated at.
        quality: the expected metric on the validation split, in the metric's own unit.
        quality_sd: its standard deviation.
        evidence: what the quality rests on: nothing (`proxy`), its multiply-adds
            (`predicted`), a short distillation (`distilled`), the trained network (`measured`).
        macs: multiply-adds of one inference.
        params: number of parameters, of the network as it is exported.
        measured_ms: median of alternated runs on the device, where it was timed.
    """

    architecture: Mapping[str, Any]
    latency: Estimate
    quality: float
    quality_sd: float
    evidence: Evidence
    macs: int
    params: int
    measured_ms: float | None = None

    @property
    def ms(self) -> float:
        """Measured where it was, else the predicted median."""
        return self.latency.ms if self.measured_ms is None else self.measured_ms

    @property
    def interval(self) -> tuple[float, float]:
        """90 % interval of the latency, ms; both ends are the measured value where there is one."""
        if self.measured_ms is not None:
            return self.measured_ms, self.measured_ms
        return self.latency.low_ms, self.latency.high_ms

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "architecture": dict(self.architecture)}


def front(points: Sequence[Point], metric: Metric) -> list[Point]:
    """The points that none beats, fastest first, by their medians.

    Points that only a proxy has evaluated are left out, since it may order candidates and decides
    nothing; so are those whose quality is no number. Of equal points the first stays.
    """
    evaluated = [p for p in points if p.evidence != "proxy" and math.isfinite(p.quality)]
    evaluated.sort(key=lambda p: (p.ms, metric.worse_by(p.quality, 0.0)))
    found: list[Point] = []
    for point in evaluated:
        if not found or metric.is_better(point.quality, found[-1].quality):
            found.append(point)
    return found


def likely_front(points: Sequence[Point], metric: Metric, shared: float = SHARED) -> list[Point]:
    """The front and the points that it does not beat for sure, in the order given.

    Args:
        points: those of `proxy` are left out, as in `front`.
        metric: what quality is.
        shared: of the variance of the predicted latencies, what the points have in common, so
            that it does not change their order (`Correction.shared` after measurements).
    """
    best = front(points, metric)
    kept = [p for p in points if p.evidence != "proxy" and math.isfinite(p.quality)]
    return [p for p in kept if p in best or all(_beats(q, p, metric, shared) < SURE for q in best)]


def _beats(one: Point, other: Point, metric: Metric, shared: float) -> float:
    """The probability that `one` is faster and better, their qualities taken as independent."""
    a, b = _latency_sd(one), _latency_sd(other)
    together = shared if one.measured_ms is None and other.measured_ms is None else 0.0
    slower = math.log(other.ms / one.ms)
    worse = float(metric.worse_by(other.quality, one.quality))
    apart = math.sqrt(a * a + b * b - 2 * together * a * b)
    return _above(slower, apart) * _above(worse, math.hypot(one.quality_sd, other.quality_sd))


def _latency_sd(point: Point) -> float:
    return NOISE if point.measured_ms is not None else log_sd(point.latency)


def _above(difference: float, sd: float) -> float:
    """P(N(difference, sd) > 0); a half where nothing distinguishes the two."""
    if sd == 0:
        return 0.5 * (1 + math.copysign(1.0, difference)) if difference else 0.5
    return 0.5 * math.erfc(-difference / (sd * math.sqrt(2)))


def keeps(budget: Budget, point: Point | Costed, teacher: Point) -> bool:
    """Whether the median keeps the budget; a speed-up is against the teacher's."""
    if budget.macs is not None:
        return point.macs <= budget.macs
    limit = limit_ms(budget, teacher)
    return limit is None or point.ms <= limit


def limit_ms(budget: Budget, teacher: Point) -> float | None:
    """The latency that a budget leaves; None where it is not of time."""
    if budget.speedup is not None:
        return teacher.ms / budget.speedup
    return budget.latency_ms


def best(points: Sequence[Point], budget: Budget, teacher: Point, metric: Metric) -> Point:
    """The point of the front with the best expected quality under the budget; the faster in a tie.

    Args:
        points: candidates; at least one that more than a proxy has evaluated.
        budget: evaluated at the medians.
        teacher: on the same device at the precision that its latency is compared at.
        metric: what quality is.

    Raises:
        KDError: `budget-impossible`, none keeps it.
    """
    within = front([p for p in points if keeps(budget, p, teacher)], metric)
    if not within:
        cost = (lambda p: p.macs) if budget.macs is not None else (lambda p: p.ms)
        raise impossible(budget, min(points, key=cost), teacher)
    return within[-1]


def impossible(budget: Budget, smallest: Point, teacher: Point) -> KDError:
    """The refusal of a budget, with the smallest cost that can be reached and what would reach it.

    Args:
        budget: the one that no candidate keeps.
        smallest: the candidate that comes nearest to it.
        teacher: on the same device.
    """
    requested = ", ".join(f"{k} = {v:g}" for k, v in budget.model_dump(exclude_none=True).items())
    ratio = teacher.ms / smallest.ms
    low, high = smallest.interval
    how = "measured" if smallest.measured_ms is not None else f"90 % {low:.3g} to {high:.3g}"
    nearest = reachable(budget, ratio, smallest.ms, smallest.macs)
    width = smallest.architecture.get("width")
    at = f" at width {width:.3g}" if width is not None else ""
    return KDError(
        "budget-impossible",
        f"no student of this family reaches {requested}; the smallest one: speedup {ratio:.3g}, "
        f"{smallest.ms:.3g} ms ({how}), {smallest.macs:.3g} MACs{at}",
        where="[student] budget",
        fix=f"set {nearest} or weaker, lower export.shape, or allow other "
        "students: student.family, or [search]",
    )


def reachable(budget: Budget, ratio: float, ms: float, macs: float) -> str:
    """The budget of the same kind that a student keeps, as a spec has it.

    Args:
        budget: the one that it does not keep.
        ratio: how many times faster than the teacher it is.
        ms, macs: its cost.
    """
    values = {"speedup": _below(ratio), "latency_ms": -_below(-ms), "macs": -_below(-macs)}
    name = next((n for n in values if getattr(budget, n) is not None), "latency_ms")
    if name == "speedup" and values[name] <= 1:  # not a budget
        name = "latency_ms"
    return f"budget = {{ {name} = {values[name]:.6g} }}"


def _below(value: float) -> float:
    """Rounded down to three digits, so that what a fix proposes is reached."""
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return math.floor(value / step) * step
