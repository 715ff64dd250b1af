"""The measurements and details of a verify report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.bench.paired import median_interval
from kdcompile.gates.accuracy import METRICS
from kdcompile.gates.bootstrap import interval
from kdcompile.gates.context import Counts, VerifyContext
from kdcompile.gates.speedup import measured_speedup
from kdcompile.report import Measurement

MB = 1e6


def measurements(context: VerifyContext, sizes: Mapping[str, int]) -> tuple[Measurement, ...]:
    """Every number of the report: errors, latencies here, predicted latencies, file sizes.

    Args:
        context: what was measured.
        sizes: bytes by file name.
    """
    return (
        *_errors(context),
        *_latencies(context),
        *_predictions(context),
        *(
            context.measurement("size", size / MB, "MB", precision=_precision(name), mode=name)
            for name, size in sizes.items()
        ),
    )


def _precision(name: str) -> str:
    """The precision that a file's name tells; a plain name is fp32."""
    return next((p for p in ("int8", "fp16") if p in name), "fp32")


def _errors(context: VerifyContext) -> list[Measurement]:
    counts = context.counts
    rows = [("teacher", "fp32", counts.teacher), ("student", "fp32", counts.student_fp32)]
    rows.append(("student", "int8", counts.student_int8))
    if context.precision not in ("fp32", "int8"):
        rows.append(("student", context.precision, counts.student))
    found = []
    for who, precision, predicted in rows:
        errors = predicted - counts.true
        for name, metric in METRICS.items():
            low = high = None
            if len(errors) > 1:
                low, high = interval((errors,), metric, confidence=0.95, seed=context.seed)
            found.append(
                context.measurement(
                    f"{who} {name}",
                    float(metric(errors)),
                    "count",
                    low=low,
                    high=high,
                    n=len(errors),
                    precision=precision,
                    mode=counts.scope,
                )
            )
    return found


def _latencies(context: VerifyContext) -> list[Measurement]:
    latency = context.latency
    found = []
    for who, precision, samples in (
        ("teacher", "fp32", latency.times.a),
        ("student", latency.precision, latency.times.b),
    ):
        value, low, high = median_interval(samples, context.seed)
        found.append(
            context.measurement(
                f"{who} latency",
                value,
                "ms",
                low=low,
                high=high,
                n=len(samples),
                precision=precision,
                mode=latency.mode,
            )
        )
    return [*found, measured_speedup(context)]


def _predictions(context: VerifyContext) -> list[Measurement]:
    found = []
    for precision, prediction in context.predictions.items():
        for who, value in (("teacher", prediction.teacher), ("student", prediction.student)):
            found.append(
                context.measurement(
                    f"{who} latency",
                    value,
                    "ms",
                    evidence="predicted",
                    low=value / prediction.band,
                    high=value * prediction.band,
                    precision=precision,
                    mode="validated" if prediction.validated else "unvalidated",
                )
            )
    return found


def prediction_rows(counts: Counts) -> list[dict[str, Any]]:
    """One row a photo: its name, true count and what each network counted."""
    return [
        {
            "name": name,
            "true": float(counts.true[i]),
            "teacher": float(counts.teacher[i]),
            "student_fp32": float(counts.student_fp32[i]),
            "student_int8": float(counts.student_int8[i]),
            "student": float(counts.student[i]),
        }
        for i, name in enumerate(counts.names)
    ]


def by_density(counts: Counts) -> list[dict[str, Any]]:
    """MAE of teacher and deployed student in thirds of the photos by true count, sparse first.

    `low` and `high` are the smallest and the largest true count of a third. Fewer than three
    photos give fewer parts.
    """
    order: NDArray[np.int64] = np.argsort(counts.true, kind="stable")
    return [
        {
            "low": float(counts.true[part].min()),
            "high": float(counts.true[part].max()),
            "n": len(part),
            "teacher_mae": float(np.abs(counts.teacher - counts.true)[part].mean()),
            "student_mae": float(np.abs(counts.student - counts.true)[part].mean()),
        }
        for part in np.array_split(order, 3)
        if len(part)
    ]
