"""The measurements and details of a verify report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.report import Measurement
from kdcompile.core.store import Artifact
from kdcompile.gates.bias import bias_measurements
from kdcompile.gates.context import Floats, Origin, Outcomes, VerifyContext
from kdcompile.gates.frame import frame_numbers
from kdcompile.gates.resources import resource_numbers
from kdcompile.gates.speedup import measured_speedup, predicted_speedup
from kdcompile.stats.bootstrap import interval
from kdcompile.stats.latency_interval import median_interval
from kdcompile.stats.noninferiority import rate_interval
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.records import value_of
from kdcompile.tasks.task import Task

MB = 1e6
PRECISIONS = ("int8", "fp16", "bf16", "fp8", "mixed")


def measurements(context: VerifyContext, sizes: Mapping[str, int]) -> tuple[Measurement, ...]:
    """Every number of the report: errors, latencies here, predicted latencies, file sizes.

    Args:
        context: what was measured.
        sizes: bytes by file name.
    """
    return (
        *_errors(context),
        *bias_measurements(context),
        *_latencies(context),
        *_predictions(context),
        *(
            context.measurement("size", size / MB, "MB", precision=_precision(name), mode=name)
            for name, size in sizes.items()
        ),
        *resource_numbers(context),
        *frame_numbers(context),
        *context.extra,
    )


def _precision(name: str) -> str:
    """The precision that a file's name tells; a plain name is fp32."""
    return next((p for p in PRECISIONS if p in name), "fp32")


def _errors(context: VerifyContext) -> list[Measurement]:
    task, outcomes, host = context.task, context.outcomes, context.host
    rows = [
        ("teacher", "teacher", "fp32", host),
        ("student", "student_fp32", "fp32", host),
        ("student", "student_int8", "int8", host),
    ]
    if context.deployed != host or context.precision not in ("fp32", "int8"):
        rows.append(("student", "student", context.precision, context.deployed))
    return [
        _error(context, metric, f"{who} {metric.name}", network, precision, origin)
        for who, network, precision, origin in rows
        for metric in (*task.metrics, *task.map_metrics)
        if outcomes.knows(network, metric)
    ]


def _error(
    context: VerifyContext,
    metric: Metric,
    name: str,
    network: str,
    precision: str,
    origin: Origin,
) -> Measurement:
    """A metric of a network with its interval, where it has one."""
    errors, low, high = context.outcomes.errors(context.task, network, metric), None, None
    if metric.points:
        low, high = rate_interval(errors, confidence=0.95)
    elif len(errors) > 1 and metric.draws is None:  # else it is the gate that takes the time
        least = -math.inf if metric.higher else 0.0
        low, high = interval((errors,), metric.of, confidence=0.95, seed=context.seed, least=least)
        high = min(high, metric.most)
    return context.measurement(
        name,
        metric(errors),
        context.task.unit_of(metric),
        origin=origin,
        low=low,
        high=high,
        n=len(errors),
        precision=precision,
        mode=context.outcomes.scope,
    )


def _latencies(context: VerifyContext) -> list[Measurement]:
    latency = context.latency
    found = []
    for who, precision, samples in (
        ("teacher", latency.teacher_precision, latency.times.a),
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
        state = "validated" if prediction.validated else "unvalidated"
        beside = f"{state}, beside {precision}"
        for who, value, own, mode in (
            ("teacher", prediction.teacher, prediction.teacher_precision, beside),
            ("student", prediction.student, precision, state),
        ):
            found.append(
                context.measurement(
                    f"{who} latency",
                    value,
                    "ms",
                    origin=context.model,
                    low=value / prediction.band,
                    high=value * prediction.band,
                    precision=own,
                    mode=mode,
                )
            )
    speedup = None if context.ran_on_target else predicted_speedup(context)
    return found if speedup is None else [*found, speedup]


def prediction_rows(outcomes: Outcomes) -> list[dict[str, Any]]:
    """One row a photo: its name, the true value and what each network predicted.

    Where the teacher lacks classes, also whether it has the photo's: `taught`.
    """
    networks = ["true", "teacher", "student_fp32", "student_int8", "student"]
    if outcomes.previous is not None:
        networks.append("previous")
    return [
        {"name": name, **{who: value_of(getattr(outcomes, who)[i]) for who in networks}}
        | ({} if outcomes.taught is None else {"taught": bool(outcomes.taught[i])})
        for i, name in enumerate(outcomes.names)
    ]


def part_rows(
    task: Task, outcomes: Outcomes, classes: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The task's metric of teacher and deployed student in each of its groups of photos.

    A row has what the group is, its `n` images, `teacher_METRIC` and `student_METRIC`.
    """
    metric = task.metric
    errors = {
        who: task.errors(getattr(outcomes, who), outcomes.true) for who in ("teacher", "student")
    }
    return [
        {
            **about,
            "n": len(part),
            **{
                f"{who}_{metric.name}": task.metric_of(metric, about)(found[part])
                for who, found in errors.items()
            },
        }
        for about, part in task.parts_of(outcomes.true, errors["teacher"], classes)
    ]


MOST = 10


def worst_rows(
    task: Task, outcomes: Outcomes, difficulty: Floats, classes: Sequence[str] | None
) -> list[dict[str, Any]]:
    """At most `MOST` images, the worst first, as JSON values.

    A row has the photo's `name`; what is `true`, and what the `student` and the `teacher` predict,
    as a report shows them; the student's `difficulty`; and `grew`, by how much its absolute error
    is larger than the teacher's (of classes 1 where the teacher alone is right, -1 where the
    student alone is, else 0).

    Args:
        task: what is predicted.
        outcomes: the predictions.
        difficulty: how far the student is from the truth on each image, [N].
        classes: the names that the data has for them.
    """
    order: NDArray[np.int64] = np.argsort(-difficulty, kind="stable")[:MOST]
    errors = {
        who: np.abs(task.errors(getattr(outcomes, who), outcomes.true))
        for who in ("teacher", "student")
    }
    grew = errors["student"] - errors["teacher"]
    return [
        {
            "name": outcomes.names[index],
            **{
                who: task.name_of(value_of(getattr(outcomes, who)[index]), classes)
                for who in ("true", "student", "teacher")
            },
            "difficulty": float(difficulty[index]),
            "grew": float(grew[index]),
        }
        for index in order
    ]


BUILD = ("bytes", "seconds", "flags", "timing_cache", "deterministic", "dla_fallback")
LAYERS = 40  # of a deep network, the slowest


def compiled_details(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """The report's `engines`, `layers`, `mixed`, `refinements` and `sensitivity`, where there are.

    Args:
        inputs: the artifacts of calibrate and compile.
    """
    compiled, calibrated = inputs["compile"], inputs["calibrate"]
    found: dict[str, Any] = {}
    if "engines.json" in compiled.files:
        engines = compiled.json("engines.json")
        found["engines"] = {
            precision: {name: made["build"].get(name) for name in BUILD}
            for precision, made in engines.items()
        }
        chosen = engines[compiled.json("choice.json")["precision"]]
        found["layers"] = _layers(chosen)
    if "mixed.json" in compiled.files:
        plan = compiled.json("mixed.json")
        found["mixed"] = {"summary": plan["summary"], "in fp16": plan["reasons"]}
    if "refine.json" in calibrated.files:
        records = calibrated.json("refine.json")
        found["refinements"] = {record["name"]: record["why"] for record in records}
    if "sensitivity.json" in calibrated.files:
        found["sensitivity"] = _sensitivity(calibrated.json("sensitivity.json"))
    return found


def _layers(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The slowest layers of an engine: name, ms a call, share of all layers, precision."""
    profile = made["profile"]
    if profile is None:
        return []
    typed = {layer["name"]: layer.get("precision") for layer in made["build"].get("layers") or ()}
    rows = sorted(profile["layers"], key=lambda layer: -float(layer["ms"]))
    return [
        {
            "name": layer["name"],
            "ms": layer["ms"],
            "share": layer["ms"] / profile["total_ms"] if profile["total_ms"] else None,
            "precision": layer.get("precision") or typed.get(layer["name"]),
        }
        for layer in rows[:LAYERS]
    ]


def _sensitivity(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a layer, the most sensitive first; SQNR in dB against fp32."""
    return [
        {
            "layer": layer["layer"],
            "macs_share": layer["macs_share"],
            "alone_sqnr_db": layer["alone"]["sqnr_db"],
            "alone_metric": layer["alone"]["metric"],
            "without_sqnr_db": layer["without"]["sqnr_db"],
            "without_metric": layer["without"]["metric"],
        }
        for layer in record["layers"]
    ]
