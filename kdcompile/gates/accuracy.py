"""Gate `accuracy`: the deployed student is as accurate as the teacher on the same test images.

By the rule that `noninferior` states, the teacher being the reference. A student with more classes
is evaluated on images of the teacher's: what it knows of new ones would hide what it has
forgotten.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.config.gates import MetricGate, Percent, fraction
from kdcompile.core.report import GateResult, Measurement, Verdict
from kdcompile.gates.context import Floats, VerifyContext
from kdcompile.gates.registry import Decidable, gate, of_all
from kdcompile.stats.drawn import bounds_of
from kdcompile.stats.noninferiority import Decision, compare, limits_text, observed_text
from kdcompile.tasks.metric import MAE, Metric
from kdcompile.tasks.task import Task

NO_MAPS = (
    "a board sends home what it predicted, not its density maps: kdcompile build --via PLACE "
    "runs the engine on the test images and decides it"
)


class AccuracyGate(MetricGate):
    """Student against teacher, paired over the test images.

    Without a metric it is the task's first: mae, or top1 for classification. The limits of an
    error (mae, rmse, game1 to game3) are shares of the teacher's value, those of top1 percentage
    points, and those of rel_error and disagreement the error itself, as the teacher's own is 0.
    """

    board_limit = "accuracy", "margin"
    max_increase: Percent = "5%"
    margin: Percent = "15%"


def _threshold(settings: AccuracyGate, task: Task) -> str:
    metric = task.find_metric(settings.metric)
    whose = "" if metric.absolute else "the teacher's"
    return limits_text(metric, settings.max_increase, settings.margin, whose)


def _easiest(
    settings: AccuracyGate, task: Task, true: Floats, classes: Sequence[str] | None, seed: int
) -> Decidable:
    metric = task.find_metric(settings.metric)

    def rule(n: int) -> tuple[Verdict, str]:
        found = never_wrong(metric, n, settings.margin, settings.max_increase, seed)
        return found.verdict, found.reason

    return of_all("accuracy", len(true), rule)


@gate(
    "accuracy",
    AccuracyGate,
    threshold=_threshold,
    needs=("predictions",),
    kind="accuracy",
    rank=0,
    always=True,
    easiest=_easiest,
    on_board="build_engine.py --test PACK decides; kdcompile bundle --test-pack FOLDER writes it",
)
def accuracy(settings: AccuracyGate, context: VerifyContext) -> GateResult:
    """Judge the student's predictions by the rule that this module states."""
    task, outcomes = context.task, context.outcomes
    metric = task.find_metric(settings.metric)
    threshold = _threshold(settings, task)
    if not outcomes.knows("student", metric):
        return GateResult(
            "accuracy", "skipped", context.evidence, settings.required, threshold,
            "no density maps", NO_MAPS,
        )  # fmt: skip
    names, where = outcomes.names, outcomes.taught
    kept = np.ones(len(names), np.bool_) if where is None else where
    if where is not None and not where.any():
        return GateResult(
            "accuracy", "inconclusive", context.evidence, settings.required, threshold,
            "no number", "no test image is of one of the teacher's classes: add some to data.test",
        )  # fmt: skip
    found = compare(
        metric,
        outcomes.errors(task, "teacher", metric)[kept],
        outcomes.errors(task, "student", metric)[kept],
        margin=fraction(settings.margin),
        max_increase=fraction(settings.max_increase),
        seed=context.seed,
        find=bounds_of(metric),
    )
    return GateResult(
        name="accuracy",
        verdict=found.verdict,
        evidence=context.evidence,
        required=settings.required,
        threshold=threshold,
        observed=observed_text(metric, found.reference, found.value),
        reason=f"{found.reason}, on {outcomes.scope}"
        + ("" if where is None else f", the {kept.sum()} of the teacher's classes")
        + _of_itself(settings, context, metric, found, kept),
        measurements=(difference(context, metric, found, "teacher", int(kept.sum())),),
    )


def _of_itself(
    settings: AccuracyGate,
    context: VerifyContext,
    metric: Metric,
    found: Decision,
    kept: NDArray[np.bool_],
) -> str:
    """Of a student that fails, that it does so in fp32 already; else nothing."""
    if found.verdict != "failed" or not context.outcomes.knows("student_fp32", metric):
        return ""
    trained = metric(context.outcomes.errors(context.task, "student_fp32", metric)[kept])
    if not metric.is_better(
        metric.limit(found.reference, fraction(settings.max_increase)), trained
    ):
        return ""
    return f"; the fp32 student fails by itself, with {metric.text(trained)}: not by quantisation"


def of_no_error(metric: Metric) -> Metric:
    """The metric for images without an error, also where it is of a set that is not there."""
    if metric.draws is None:
        return metric
    of = _share_right if metric.higher else MAE.of
    # no share of errors of 0: the difference itself
    return replace(metric, of=of, draws=None, most=math.inf, absolute=metric.higher)


def _share_right(errors: Floats, axis: int = -1) -> Any:
    """1 where nothing is wrong, as mAP and mIoU are."""
    return 1.0 - MAE.of(errors, axis)


def never_wrong(metric: Metric, n: int, margin: str, max_increase: str, seed: int) -> Decision:
    """The decision on n images on which neither network is wrong, by the limits of a spec."""
    right, metric = np.zeros(n), of_no_error(metric)
    most = fraction(max_increase)
    return compare(metric, right, right, margin=fraction(margin), max_increase=most, seed=seed)


def difference(
    context: VerifyContext, metric: Metric, found: Decision, whose: str, n: int, part: str = ""
) -> Measurement:
    """How much worse the student is, with its bounds.

    Args:
        context: where it ran.
        metric: of what.
        found: the decision.
        whose: the reference, in a word.
        n: photos.
        part: which of the images, in words, where not all.
    """
    order = f"{whose} minus student" if metric.higher else f"student minus {whose}"
    return context.measurement(
        f"{metric.name} {metric.worsening}" + (f", {part}" if part else ""),
        metric.worse_by(found.value, found.reference),
        context.task.unit_of(metric),
        low=_finite(found.low),
        high=_finite(found.high),
        n=n,
        mode=f"{order}, paired over images; each bound one-sided 95 %",
    )


def _finite(bound: float | None) -> float | None:
    """A bound, where there is one: JSON has no infinity."""
    return bound if bound is not None and math.isfinite(bound) else None
