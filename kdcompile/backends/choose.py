"""Choice of the precision that ships: the fastest that is accurate enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kdcompile.core.report import Evidence
from kdcompile.tasks.metric import Metric

Basis = Literal["measured", "predicted", "asked"]
NOISE = 0.02  # validation metrics of one student's precisions are as good as this near
TIE = 0.02  # medians of two engines in turns differ by this much between runs of one build
ORDER = ("fp32", "fp16", "bf16", "mixed", "fp8", "int8")  # the most precise first, in a tie


@dataclass(frozen=True)
class Candidate:
    """One precision of the student, judged on the validation split.

    `latency_ms` is of one image at the typical shape, measured or predicted as `evidence` says;
    `val_metric` is the task's metric; `sqnr_db` the agreement of its outputs with fp32's;
    `accurate` whether the metric alone is within its limit; `why` says how `passed` came about.
    """

    precision: str
    latency_ms: float
    evidence: Evidence
    val_metric: float
    sqnr_db: float
    accurate: bool
    passed: bool
    why: str


@dataclass(frozen=True)
class Choice:
    """The precision that ships, on which basis, and why."""

    precision: str
    basis: Basis
    why: str


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to pass: the gates' thresholds, applied on validation."""

    metric: Metric
    limit: float
    min_sqnr_db: float


def judge(
    precision: str,
    latency_ms: float,
    evidence: Evidence,
    val_metric: float,
    sqnr_db: float,
    limits: Limits,
) -> Candidate:
    """A candidate with its verdict; a value that is no number never passes."""
    metric = limits.metric
    accurate = math.isfinite(val_metric) and not metric.is_better(limits.limit, val_metric)
    alike = sqnr_db >= limits.min_sqnr_db
    beyond = "under" if metric.higher else "over"
    why = (
        f"validation {metric.name} {metric.text(val_metric)} is "
        f"{'within' if accurate else beyond} the limit {metric.text(limits.limit)}"
    )
    if not alike:
        why += f", and its outputs keep {sqnr_db:.1f} dB of {limits.min_sqnr_db:g}"
    return Candidate(
        precision, latency_ms, evidence, val_metric, sqnr_db, accurate, accurate and alike, why
    )


def choose(candidates: Sequence[Candidate], metric: Metric, asked: str = "auto") -> Choice:
    """The asked precision; for `auto` the fastest that passes.

    Where none passes: fp32 if that is not accurate either, as then no quantisation is to blame,
    else the most accurate.

    Args:
        candidates: at least one. Equal latencies go to the more accurate one; measured ones
            within `TIE` of the fastest, and where none passes metrics within `NOISE` of the best,
            go to the more precise one.
        metric: what their accuracy is in.
        asked: `auto`, or the precision of one of the candidates.
    """
    if asked != "auto":
        given = next(c for c in candidates if c.precision == asked)
        return Choice(asked, "asked", f"the spec asks for {asked}; {given.why}")
    passing = [c for c in candidates if c.passed]
    if not passing:
        return _none_passes(candidates, metric)
    best = fastest = min(passing, key=lambda c: (c.latency_ms, _loss(c, metric)))
    if _basis(best) == "measured":
        level = [c for c in passing if c.latency_ms <= (1 + TIE) * best.latency_ms]
        best = min(level, key=lambda c: ORDER.index(c.precision))
    place = "the fastest" if best is fastest else f"within {TIE:.0%} of the fastest"
    others = [_against(c, best) for c in candidates if c is not best]
    reason = "; ".join([f"{best.precision} is {place} that passes", *others])
    return Choice(best.precision, _basis(best), reason)


def _none_passes(candidates: Sequence[Candidate], metric: Metric) -> Choice:
    for trained in candidates:
        if trained.precision == "fp32" and not trained.accurate:
            reason = f"no precision passes; the fp32 student fails by itself: {trained.why}"
            return Choice("fp32", _basis(trained), reason)
    first = min(candidates, key=lambda c: _loss(c, metric))
    near = NOISE * abs(first.val_metric) if math.isfinite(first.val_metric) else 0.0
    level = [c for c in candidates if _loss(c, metric) <= _loss(first, metric) + near]
    best = min(level, key=lambda c: ORDER.index(c.precision))
    is_first = _loss(best, metric) == _loss(first, metric)
    place = "the most accurate" if is_first else f"within {NOISE:.0%} of the most accurate"
    reason = f"no precision passes; {best.precision} is {place}: {best.why}"
    return Choice(best.precision, _basis(best), reason)


def _basis(candidate: Candidate) -> Basis:
    return "predicted" if candidate.evidence == "predicted" else "measured"


def _loss(candidate: Candidate, metric: Metric) -> float:
    """How bad the metric is, to be sorted by; no number is the worst."""
    value = candidate.val_metric
    return float(metric.worse_by(value, 0.0)) if math.isfinite(value) else math.inf


def _against(other: Candidate, best: Candidate) -> str:
    if not other.passed:
        return f"{other.precision} does not pass: {other.why}"
    order = (other.latency_ms > best.latency_ms) - (other.latency_ms < best.latency_ms)
    relation = (f"at most {TIE:.0%} faster than", "as fast as", "slower than")[order + 1]
    return (
        f"{other.precision} {other.latency_ms:.3g} ms is {relation} "
        f"{best.precision} {best.latency_ms:.3g} ms"
    )
