"""Which precision ships: the fastest that is accurate enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from kdcompile.report import Evidence

Basis = Literal["measured", "predicted", "asked"]


@dataclass(frozen=True)
class Candidate:
    """One precision of the student, judged on the validation split.

    `latency_ms` is of one image at the typical shape, measured or predicted as `evidence` says;
    `val_metric` is the error of the counts; `sqnr_db` the agreement of its densities with fp32's;
    `why` says how `passed` came about.
    """

    precision: str
    latency_ms: float
    evidence: Evidence
    val_metric: float
    sqnr_db: float
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

    metric: str
    highest: float
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
    accurate = math.isfinite(val_metric) and val_metric <= limits.highest
    alike = sqnr_db >= limits.min_sqnr_db
    why = (
        f"validation {limits.metric} {val_metric:.4g} is {'within' if accurate else 'over'} "
        f"the limit {limits.highest:.4g}"
    )
    if not alike:
        why += f", and its densities keep {sqnr_db:.1f} dB of {limits.min_sqnr_db:g}"
    return Candidate(precision, latency_ms, evidence, val_metric, sqnr_db, accurate and alike, why)


def choose(candidates: Sequence[Candidate], asked: str = "auto") -> Choice:
    """The asked precision; for `auto` the fastest that passes, else the most accurate.

    Args:
        candidates: at least one; equal latencies go to the more accurate one.
        asked: `auto`, or the precision of one of the candidates.
    """
    if asked != "auto":
        given = next(c for c in candidates if c.precision == asked)
        return Choice(asked, "asked", f"the spec asks for {asked}; {given.why}")
    passing = [c for c in candidates if c.passed]
    if not passing:
        best = min(candidates, key=_error)
        reason = f"no precision passes; {best.precision} is the most accurate: {best.why}"
        return Choice(best.precision, _basis(best), reason)
    best = min(passing, key=lambda c: (c.latency_ms, _error(c)))
    others = [_against(c, best) for c in candidates if c is not best]
    reason = "; ".join([f"{best.precision} is the fastest that passes", *others])
    return Choice(best.precision, _basis(best), reason)


def _basis(candidate: Candidate) -> Basis:
    return "predicted" if candidate.evidence == "predicted" else "measured"


def _error(candidate: Candidate) -> float:
    return candidate.val_metric if math.isfinite(candidate.val_metric) else math.inf


def _against(other: Candidate, best: Candidate) -> str:
    if not other.passed:
        return f"{other.precision} does not pass: {other.why}"
    relation = "slower than" if other.latency_ms > best.latency_ms else "as fast as"
    return (
        f"{other.precision} {other.latency_ms:.3g} ms is {relation} "
        f"{best.precision} {best.latency_ms:.3g} ms"
    )
