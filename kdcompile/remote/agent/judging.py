"""What a board's numbers amount to: agreement, the verdicts of the gates, and the choice.

The bounds and verdicts are those of kdcompile's own modules, which are in the agent's file: the
same numbers give the same verdict when `device.json` is merged.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from kdcompile.stats.latency_interval import PairedTimes, limit_verdict, ratio_interval
from kdcompile.stats.noninferiority import compare, observed_text
from kdcompile.tasks.metric import MAE, METRICS

LIMIT_DB, OVERFLOW = 200.0, 1e30  # JSON has no infinity
ORDER = ("fp32", "fp16", "bf16", "mixed", "fp8", "int8")  # from the most precise
TIE = 1.02


def prediction(output: Any, task: str) -> float:
    """One image's output [1, ...] as a number: its count, its class (-1 for none), or its value."""
    if task == "counting":
        return float(output.reshape(1, -1).sum(1, dtype=np.float64)[0])
    if task == "classification":
        return float(output[0].argmax()) if np.isfinite(output).all() else -1.0
    return float(output.reshape(-1)[0])


def errors_of(predicted: Any, true: Any, task: str) -> Any:
    """One error an image, float64 [N]: 1 for a wrong class, else signed differences."""
    if task == "classification":
        return np.not_equal(predicted, true).astype(np.float64)
    return np.subtract(predicted, true, dtype=np.float64)


def agreement(outputs: list[Any], reference: list[Any]) -> dict[str, float]:
    """SQNR in dB pooled over images, and the largest relative error."""
    worst, signal, noise = 0.0, 0.0, 0.0
    for output, want in zip(outputs, reference):
        if output.shape != want.shape:  # another network's output agrees in nothing
            return {"max_rel_error": OVERFLOW, "sqnr_db": -LIMIT_DB}
        wide = want.astype(np.float64)
        error = output.astype(np.float64) - wide
        worst = max(worst, float(np.abs(error).max()) / max(float(np.abs(want).max()), 1e-30))
        signal, noise = signal + float((wide**2).sum()), noise + float((error**2).sum())
    if not math.isfinite(noise):  # a NaN or an overflow is the worst there is
        return {"max_rel_error": OVERFLOW, "sqnr_db": -LIMIT_DB}
    if noise == 0 or signal == 0:
        return {"max_rel_error": worst, "sqnr_db": -LIMIT_DB if noise else LIMIT_DB}
    decibels = 10 * math.log10(signal / noise)
    return {"max_rel_error": worst, "sqnr_db": min(max(decibels, -LIMIT_DB), LIMIT_DB)}


def judge_accuracy(
    gate: dict[str, Any], task: str, true: Any, teacher: Any, student: Any, seed: int
) -> dict[str, Any]:
    """The verdict of a student's predictions by the rule of the accuracy gate, as JSON values.

    Args:
        gate: `metric`, `max_increase` and `margin` (per cent, as text).
        task: the task's kind.
        true: float64 [N].
        teacher: float64 [N].
        student: float64 [N].
        seed: of the bootstrap.
    """
    found: dict[str, Any] = {"n": len(true)}
    if not len(true):
        reason = "no test photo is of one of the teacher's classes"
        return dict(found, verdict="inconclusive", reason=reason)
    metric = METRICS.get(gate["metric"], MAE)
    if metric.level is not None:  # of density maps, which home has: here the count's stands for it
        metric = MAE
    errors = [errors_of(predicted, true, task) for predicted in (teacher, student)]
    margin, most = (float(gate[key].rstrip("%")) / 100 for key in ("margin", "max_increase"))
    decided = compare(metric, *errors, margin=margin, max_increase=most, seed=seed)
    numbers = {"teacher": decided.reference, "student": decided.value,
               "low": decided.low, "high": decided.high}  # fmt: skip
    for name, value in numbers.items():
        found[name] = value if value is not None and math.isfinite(value) else None
    told = observed_text(metric, decided.reference, decided.value)
    return dict(found, verdict=decided.verdict, reason=f"{told}; {decided.reason}")


class Number(NamedTuple):
    """A measured number with the ends of its interval, in words, and what to say after them."""

    text: str
    unit: str
    low: float
    high: float
    note: str = ""


def decided(number: Number, setting: str, limit: float) -> tuple[str, str]:
    """The verdict of a number against the limit that a gate's setting `max` or `min...` is."""
    is_least = setting.startswith("min")
    verdict = limit_verdict(number.low, number.high, limit, is_least=is_least)
    words = "at least" if is_least else "at most"
    return verdict, f"{number.text}, {words} {limit:g}{number.unit} wanted{number.note}"


def speedup(teacher: Any, student: Any, seed: int, note: str = "") -> Number:
    """The speed-up from the blocks of both, ms a call, neighbours in time."""
    times = PairedTimes(np.asarray(teacher, np.float64), np.asarray(student, np.float64), 1)
    ratio, low, high = ratio_interval(times, seed)
    return Number(f"{ratio:.2f}x ({low:.2f} to {high:.2f})", "x", low, high, note)


def choose(passing: list[tuple[str, float]], others: list[tuple[str, float]]) -> tuple[str, str]:
    """The fastest precision, the more precise one where two are within 2 %, and why.

    Args:
        passing: at least one (precision, ms).
        others: those that ran and did not pass.
    """
    least = min(ms for _, ms in passing)
    level = [p for p, ms in passing if ms <= TIE * least]
    best = min(level, key=ORDER.index)
    ms_of = dict(passing)
    first = "is the fastest" if ms_of[best] == least else "is as fast as any"
    told = [f"{best} {first} that passes"]
    for name, ms in sorted(passing, key=lambda c: c[1]):
        pair = f"{name} {ms:.3g} ms", f"{best} {ms_of[best]:.3g} ms"
        if name != best and name in level:
            told.append(f"{pair[0]} is within 2 % of {pair[1]}, which is more precise")
        elif name != best:
            told.append(f"{pair[0]} is slower than {pair[1]}")
    told += [f"{name} {ms:.3g} ms does not pass" for name, ms in others]
    return best, "; ".join(told)
