"""Gate `strata`: the student is as accurate as the teacher in every part of the test images.

The parts are the task's: thirds by true count or value, or the classes. A good mean can hide one
part that is ruined. In each of k parts the bounds are those of `noninferior`, and with low_k the
lower bound at 1 - 5 %/k the verdict is

    passed        high <= margin in every part. No correction: all must hold, so the chance to pass
                  a student that is worse in one part is at most 5 % (Berger, Multiparameter
                  Hypothesis Testing and Acceptance Sampling, Technometrics 1982)
    failed        low_k > margin in a part: the first step of Holm's procedure, so the chance to
                  fail a student that is within the margin everywhere is at most 5 %
    inconclusive  otherwise, or where a part has too few images and none failed
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kdcompile.config.gates import MetricGate, Percent, fraction
from kdcompile.core.report import GateResult, Measurement, Verdict
from kdcompile.gates.accuracy import NO_MAPS, difference, of_no_error
from kdcompile.gates.context import Floats, VerifyContext
from kdcompile.gates.registry import Decidable, gate
from kdcompile.stats.drawn import bounds_of
from kdcompile.stats.noninferiority import CONFIDENCE, Decision, compare
from kdcompile.stats.sample_size import least_number
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.strata import Stratum, stratum_text
from kdcompile.tasks.task import Task

SHOWN = 3  # parts that a reason names


@dataclass(frozen=True)
class Part:
    """One part: its name, its images, and its own decision with Holm's bound for failing."""

    name: str
    n: int
    decision: Decision


class StrataGate(MetricGate):
    """Student against teacher in each part of the test images: by density, value or class."""

    margin: Percent = "30%"


def _threshold(settings: StrataGate, task: Task) -> str:
    metric = task.find_metric(settings.metric)
    margin = f"{settings.margin.rstrip('%')} points" if metric.points else settings.margin
    return f"{metric.name} of every part within {margin} of the teacher's, at 95 %"


def _easiest(
    settings: StrataGate, task: Task, true: Floats, classes: Sequence[str] | None, seed: int
) -> Decidable:
    metric, margin = of_no_error(task.find_metric(settings.metric)), fraction(settings.margin)
    right = np.zeros(len(true))
    groups = task.groups(true, classes)
    if task.records:  # which classes the images have, no one knows yet: each may have all
        groups, classes = [({"class": "each"}, np.arange(len(true)))], None
    verdict, why = judge_all(judge_parts(groups, metric, right, right, margin, seed), classes)

    def one_passes(n: int) -> bool:
        part = np.zeros(n)
        return compare(metric, part, part, margin=margin, seed=seed).verdict == "passed"

    needed = least_number(one_passes)
    return Decidable("strata", len(true), verdict == "passed", why, needed, each=True)


@gate(
    "strata",
    StrataGate,
    threshold=_threshold,
    needs=("predictions",),
    kind="accuracy",
    rank=6,
    easiest=_easiest,
    on_board="build_engine.py --test PACK predicts the images; kdcompile bundle --merge decides",
)
def strata(settings: StrataGate, context: VerifyContext) -> GateResult:
    """Judge each part of the images by the rule that this module states."""
    task, outcomes = context.task, context.outcomes
    metric = task.find_metric(settings.metric)
    threshold = _threshold(settings, task)
    verdict: Verdict = "skipped"
    observed, reason = "no density maps", NO_MAPS
    told: tuple[Measurement, ...] = ()
    if outcomes.knows("student", metric):
        teacher, student = (outcomes.errors(task, who, metric) for who in ("teacher", "student"))
        parts = judge_parts(
            task.parts_of(outcomes.true, teacher, context.classes), metric, teacher, student,
            fraction(settings.margin), context.seed, task.metric_of,
        )  # fmt: skip
        verdict, reason = judge_all(parts, context.classes)
        observed, reason = _observed(metric, parts), f"{reason}, on {outcomes.scope}"
        told = tuple(
            difference(context, metric, part.decision, "teacher", part.n, part.name)
            for part in parts
        )
    return GateResult(
        "strata", verdict, context.evidence, settings.required, threshold, observed,
        reason, told,
    )  # fmt: skip


def judge_parts(
    groups: Sequence[Stratum],
    metric: Metric,
    teacher: Floats,
    student: Floats,
    margin: float,
    seed: int,
    metric_of: Callable[[Metric, Mapping[str, Any]], Metric] = lambda metric, about: metric,
) -> list[Part]:
    """Each part's own decision.

    Args:
        groups: the parts.
        metric: of the errors.
        teacher: its errors, [N].
        student: errors of the same photos.
        margin: as a share, 0.3 of "30%".
        seed: of the resampling.
        metric_of: the metric as a part is judged by it.
    """
    return [
        _part(stratum_text(about), metric_of(metric, about), teacher[where], student[where], margin,
              len(groups), seed)
        for about, where in groups
    ]  # fmt: skip


def judge_all(parts: Sequence[Part], classes: Sequence[str] | None) -> tuple[Verdict, str]:
    """The verdict of all parts, and why; a class without an image is not proven."""
    verdict, reason = _judge(parts)
    seen = {part.name for part in parts}
    unseen = [name for name in classes or () if stratum_text({"class": name}) not in seen]
    if verdict == "passed" and unseen:
        return "inconclusive", f"no test image of {', '.join(map(str, unseen))}"
    return verdict, reason


def _part(
    name: str,
    metric: Metric,
    teacher: Floats,
    student: Floats,
    margin: float,
    parts: int,
    seed: int,
) -> Part:
    """The decision in one of `parts` parts: it fails by its corrected bound only."""
    find = bounds_of(metric)
    found = compare(metric, teacher, student, margin=margin, seed=seed, find=find)
    if found.verdict == "failed":
        corrected = 1 - (1 - CONFIDENCE) / parts
        low, _ = find(metric, teacher, student, seed, corrected)
        allowed = metric.allowance(found.reference, margin)
        if low is None or not low > allowed:
            reason = f"{found.reason}; not so with {parts} parts looked at"
            found = replace(found, verdict="inconclusive", reason=reason)
    return Part(name, len(student), found)


def _judge(parts: Sequence[Part]) -> tuple[Verdict, str]:
    order: tuple[Verdict, ...] = ("failed", "inconclusive")
    for verdict in order:
        found = [part for part in parts if part.decision.verdict == verdict]
        if found:
            told = "; ".join(f"{part.name}: {part.decision.reason}" for part in found[:SHOWN])
            more = len(found) - SHOWN
            rest = f"; and {more} more" if more > 0 else ""
            return verdict, f"{len(found)} of {len(parts)} parts {verdict}: {told}{rest}"
    return "passed", f"the bound is within the margin in each of {len(parts)} parts"


def _observed(metric: Metric, parts: Sequence[Part]) -> str:
    """The part in which the student is worst beside the teacher."""
    worst = max(parts, key=lambda p: float(metric.worse_by(p.decision.value, p.decision.reference)))
    found = worst.decision
    values = f"{metric.text(found.value)} against {metric.text(found.reference)}"
    return f"{metric.name} {values} in the worst of {len(parts)} parts, {worst.name}"
