"""The rules of the accuracy, speed-up and parity gates in numpy, as kdcompile judges by them.

kdcompile judges again from the raw numbers when `device.json` is merged; here the same rules, on
the same seed, let the board choose a precision and end with the right exit code. Sources: the
BCa bootstrap (Efron, 1987), intervals of ratios (Fieller, 1954), the jackknife (Tukey, 1958), and
the score interval of paired rates (Tango, 1998).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import numpy as np

RESAMPLES, BATCH_VALUES = 9999, 2_000_000  # of kdcompile.stats.bootstrap
SPEED_RESAMPLES = 4000  # of kdcompile.stats.latency_interval
CONFIDENCE = 0.9  # two-sided; each end is a one-sided 95 % bound
LIMIT_DB, OVERFLOW = 200.0, 1e30  # JSON has no infinity
MIN_IMAGES = 8  # of kdcompile.stats.bootstrap
SURE = 1e-9
ORDER = ("fp32", "fp16", "bf16", "mixed", "fp8", "int8")  # from the most precise
TIE = 1.02
NORMAL = NormalDist()
METRICS: dict[str, Callable[..., Any]] = {
    "mae": lambda errors, axis=-1: np.mean(np.abs(errors), axis=axis),
    "rmse": lambda errors, axis=-1: np.sqrt(np.mean(np.square(errors), axis=axis)),
    "top1": lambda errors, axis=-1: np.mean(1.0 - errors, axis=axis),
}


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
    for output, want in zip(outputs, reference):  # noqa: B905
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


def increase(teacher: Any, student: Any, power: int, seed: int) -> tuple[float, float]:
    """The two-sided interval (low, high) of how much larger the student's error is.

    That of the ratio of the two, as in kdcompile.stats.bootstrap; an error here is the mean of
    the images' errors to a power, and the root of that.
    """
    whole = float(np.mean(np.abs(teacher) ** power) ** (1 / power))
    if not whole:
        return _of_one(student, power, seed)
    r, s = (np.abs(errors / whole) ** power for errors in (teacher, student))
    drawn = [math.inf if e >= 1 else (1 + e) / (1 - e) for e in _bca(_contrast, (r, s), seed)]
    (of_r, of_both), (_, of_s) = _quantile(len(r)) ** 2 / len(r) * np.cov(r, s)  # Fieller's
    a, b, c = r.mean() ** 2 - of_r, r.mean() * s.mean() - of_both, s.mean() ** 2 - of_s
    low, high = 0.0, math.inf
    if a > 0:
        half = math.sqrt(max(0.0, b * b - a * c)) if math.isfinite(b * b - a * c) else math.nan
        low, high = np.maximum(0.0, (b - half) / a), (b + half) / a
    ends = np.minimum(drawn[0], low), np.maximum(drawn[1], high)
    found = [whole * (float(end) ** (1 / power) - 1) for end in ends]
    return found[0], found[1]


def _of_one(errors: Any, power: int, seed: int) -> tuple[float, float]:
    """That of one network's error: the wider of BCa and of Student's by the jackknife."""

    def metric(values: Any) -> Any:
        return np.mean(np.abs(values) ** power, axis=-1) ** (1 / power)

    n, point = len(errors), float(metric(errors))
    left_out = np.array([metric(np.delete(errors, i)) for i in range(n)])
    spread = math.sqrt((n - 1) / n * float(np.square(left_out - left_out.mean()).sum()))
    low, high = _bca(metric, (errors,), seed)
    reach = _quantile(n) * spread
    low, high = np.minimum(low, point - reach), np.maximum(high, point + reach)
    return float(np.maximum(0.0, low)), float(high)  # an error is not negative


def _contrast(reference: Any, errors: Any) -> Any:
    """(s - r) / (s + r) of the means r and s; 0 where both are 0."""
    r, s = np.mean(reference, axis=-1), np.mean(errors, axis=-1)
    total = np.asarray(r + s)
    return np.divide(s - r, total, out=np.zeros_like(total), where=total > 0)


def _bca(statistic: Callable[..., Any], samples: tuple[Any, ...], seed: int) -> tuple[float, float]:
    """The bias-corrected and accelerated bootstrap interval of a statistic of images."""
    n = len(samples[0])
    point = float(statistic(*samples))
    if not any(np.ptp(sample) for sample in samples):
        return point, point
    rng, batch, drawn = np.random.default_rng(seed), max(1, BATCH_VALUES // n), []
    for start in range(0, RESAMPLES, batch):
        picks = rng.integers(0, n, (min(batch, RESAMPLES - start), n))
        drawn.append(statistic(*(sample[picks] for sample in samples)))
    found = np.concatenate(drawn)
    if float(np.ptp(found)) <= 1e-12 * max(float(np.abs(s).max()) for s in samples):
        return point, point
    below = (np.count_nonzero(found < point) + np.count_nonzero(found <= point)) / (2 * RESAMPLES)
    if not 0 < below < 1:
        return math.nan, math.nan
    left_out = np.array([statistic(*(np.delete(s, i) for s in samples)) for i in range(n)])
    influence = (n - 1) * (left_out.mean() - left_out)
    skew = (influence**3).sum() / n**3 / ((influence**2).sum() / n**2) ** 1.5 / 6
    bias, z = NORMAL.inv_cdf(below), NORMAL.inv_cdf((1 + CONFIDENCE) / 2)
    moved = [bias + (bias + edge) / (1 - skew * (bias + edge)) for edge in (-z, z)]
    low, high = np.quantile(found, [NORMAL.cdf(edge) for edge in moved])
    return float(low), float(high)


def _quantile(n: int) -> float:
    """Student's for n images at either end of the interval."""
    return _t_quantile(NORMAL.inv_cdf((1 + CONFIDENCE) / 2), n - 1)


def _t_quantile(z: float, freedom: int) -> float:
    """Student's quantile where the normal one is z (Abramowitz and Stegun, 26.7.5)."""
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def rate_decrease(teacher: Any, student: Any) -> Any:
    """The two-sided score interval (low, high) of how much lower the student's rate is."""
    z, n = NORMAL.inv_cdf(0.5 + CONFIDENCE / 2), len(teacher)
    lost = int(((teacher == 0) & (student == 1)).sum())
    won = int(((teacher == 1) & (student == 0)).sum())

    def inside(difference: float) -> bool:
        a, b = 2 * n, -lost - won + (2 * n - lost + won) * difference
        c = -won * difference * (1 - difference)
        student_only = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = n * (2 * student_only + difference * (1 - difference))
        gap = lost - won - n * difference
        return gap == 0 or (variance > 0 and gap * gap / variance < z * z)

    observed = (lost - won) / n
    return _edge(inside, observed, -1 + SURE, -1.0), _edge(inside, observed, 1 - SURE, 1.0)


def _edge(inside: Callable[[float], bool], start: float, limit: float, beyond: float) -> float:
    """Where a condition that holds at `start` ends on the way to `limit`, by bisection."""
    if abs(start) >= abs(limit) and start * limit > 0:
        return beyond
    near, far = start, limit
    for _ in range(100):
        middle = (near + far) / 2
        near, far = (middle, far) if inside(middle) else (near, middle)
    return (near + far) / 2


def judge_accuracy(
    gate: dict[str, Any], task: str, true: Any, teacher: Any, student: Any, seed: int
) -> dict[str, Any]:
    """The verdict of a student's predictions by the rule of the accuracy gate, as JSON values.

    Args:
        gate: `metric`, `max_increase` and `margin` (per cent, as text).
        task: the task's kind.
        true, teacher, student: float64 [N].
        seed: of the bootstrap.
    """
    # a metric of density maps, such as game2, is for home: here the count's stands for it
    name = gate["metric"] if gate["metric"] in METRICS else "mae"
    metric, is_rate = METRICS[name], name == "top1"
    errors_t, errors_s = (errors_of(p, true, task) for p in (teacher, student))
    t, s, sign = float(metric(errors_t)), float(metric(errors_s)), -1.0 if is_rate else 1.0
    limit, margin = (
        float(gate[key].rstrip("%")) / 100 * (1.0 if is_rate else abs(t))
        for key in ("max_increase", "margin")
    )
    found: dict[str, Any] = {"teacher": t, "student": s, "low": None, "high": None, "n": len(true)}
    if len(true) > 1 and is_rate:
        found["low"], found["high"] = rate_decrease(errors_t, errors_s)
    elif len(true) >= MIN_IMAGES:
        power = 2 if name == "rmse" else 1
        found["low"], found["high"] = increase(errors_t, errors_s, power, seed)
    low, high = found["low"], found["high"]
    if sign * s > sign * (t + sign * limit):
        verdict, reason = "failed", f"{name} {s:.4g} is beyond the limit of {t + sign * limit:.4g}"
    elif low is None:
        verdict, reason = "inconclusive", f"{len(true)} photos are too few for a bound at 95 %"
    elif low > margin:
        verdict, reason = "failed", f"worse by at least {low:.4g} at 95 %, margin {margin:.4g}"
    elif not high <= margin:
        verdict, reason = "inconclusive", f"worse by up to {high:.4g} at 95 %, margin {margin:.4g}"
    else:
        verdict, reason = "passed", f"worse by at most {high:.4g} at 95 %, margin {margin:.4g}"
    found = {key: value if value is None or math.isfinite(value) else None  # JSON has neither
             for key, value in found.items()}  # fmt: skip
    return dict(found, verdict=verdict, reason=f"{name} {s:.4g} against {t:.4g}; {reason}")


def judge_speedup(least: float, teacher: Any, student: Any, seed: int) -> dict[str, Any]:
    """The verdict of the speed-up gate from the blocks of both, ms a call, neighbours in time."""
    a, b = np.asarray(teacher, np.float64), np.asarray(student, np.float64)
    picks = np.random.default_rng(seed).integers(0, len(a), (SPEED_RESAMPLES, len(a)))
    ratios = np.median(a[picks], axis=1) / np.median(b[picks], axis=1)
    low, high = (float(edge) for edge in np.quantile(ratios, [0.025, 0.975]))
    ratio = float(np.median(a) / np.median(b))
    verdict = "passed" if low >= least else "failed" if high < least else "inconclusive"
    reason = f"{ratio:.2f}x ({low:.2f} to {high:.2f}), at least {least:g}x wanted"
    return {"verdict": verdict, "reason": reason, "ratio": ratio, "low": low, "high": high}


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
