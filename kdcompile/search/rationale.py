"""Explain the choice of a student in sentences: where its time goes, what changed, caveats."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdcompile.config.spec import Budget
from kdcompile.latency_model.breakdown import StageCost, merge_by_resolution
from kdcompile.latency_model.network_cost import NetworkCost
from kdcompile.latency_model.predict import NINETY, Estimate
from kdcompile.search.pareto import Point, keeps, limit_ms
from kdcompile.search.report import arch_string
from kdcompile.tasks.metric import Metric

NAMED_SHARE = 0.8  # stages are named until they make up this much of the time
KERNELS = 3
CLEAR = 0.75  # a stage whose time is less of one bound than this is named with two
EVIDENCE = {
    "proxy": "a zero-cost proxy, which orders candidates and proves nothing",
    "predicted": "its multiply-adds; the student itself has not been trained",
    "distilled": "a short distillation",
    "measured": "the trained student",
}


def explain(
    chosen: Point,
    points: Sequence[Point],
    budget: Budget,
    metric: Metric,
    teacher: tuple[Point, NetworkCost],
    student: NetworkCost,
    where: str,
) -> list[str]:
    """The choice in sentences.

    Args:
        chosen: as in `neighbours`.
        points: the front, fastest first.
        budget: what was requested.
        metric: of the qualities.
        teacher: its point, and its kernels at the precision that it is compared at.
        student: the chosen one's kernels. The parts of both add up to their points' latencies.
        where: the device as its latencies are named, such as `jetson-orin-nano-8gb@15W`.
    """
    whole, cost = teacher
    return [
        _latency(chosen, whole, where),
        _quality(chosen, whole, metric),
        *costly_stages(student),
        _kernels(student.estimate),
        *_changes(cost, student),
        *neighbours(chosen, points, budget, metric, whole),
        *_caveats(chosen, whole, student.estimate, where),
    ]


def _latency(chosen: Point, teacher: Point, where: str) -> str:
    low, high = chosen.latency.low_ms, chosen.latency.high_ms
    text = f"predicted {chosen.latency.ms:.3g} ms at {chosen.latency.precision} on {where} "
    text += f"(90 % {low:.3g} to {high:.3g})"
    if chosen.measured_ms is not None:
        text += f", measured {chosen.measured_ms:.3g} ms"
    ratio, how = teacher.ms / chosen.ms, "faster"
    if ratio < 1:
        ratio, how = 1 / ratio, "slower"
    return f"{text}: {ratio:.3g} times {how} than the teacher's {teacher.ms:.3g} ms"


def _quality(chosen: Point, teacher: Point, metric: Metric) -> str:
    half = metric.difference(NINETY * chosen.quality_sd)
    return (
        f"expected {metric.name} {metric.text(chosen.quality)}, 90 % within {half} "
        f"(teacher {metric.text(teacher.quality)}), from {EVIDENCE[chosen.evidence]}"
    )


def costly_stages(student: NetworkCost) -> list[str]:
    """The stages that make up most of the time, the costliest first."""
    numbered = sorted(enumerate(student.stages(), 1), key=lambda item: -item[1].ms)
    found, named = [], 0.0
    for number, stage in numbered:
        if named >= NAMED_SHARE:
            break
        named += stage.share
        name = stage.name if stage.resolution == "the head" else f"stage {number} {stage.name}"
        found.append(f"{name} costs {stage.share:.0%}: {_bound(stage)}")
    return found


def _bound(stage: StageCost) -> str:
    first = f"{stage.bound}-bound"
    share = stage.bounds[stage.bound] / stage.ms if stage.ms else 1.0
    if share >= CLEAR:
        return first
    rest = {name: ms for name, ms in stage.bounds.items() if name != stage.bound}
    second = max(rest, key=lambda name: rest[name])
    return f"{first} for {share:.0%} of it, {second}-bound for {rest[second] / stage.ms:.0%}"


def _kernels(estimate: Estimate) -> str:
    costliest = sorted(estimate.parts, key=lambda part: -part.ms)[:KERNELS]
    named = [f"{p.name} ({p.kind}, {p.ms / estimate.ms:.0%}, {p.bound}-bound)" for p in costliest]
    launches = f"{len(estimate.parts)} kernels"
    by = ", ".join(
        f"{ms / estimate.ms:.0%} {name}"
        for name, ms in sorted(estimate.bounds.items(), key=lambda item: -item[1])
        if ms > 0
    )
    return f"{launches}, {by}; the costliest: {', '.join(named)}"


def _changes(teacher: NetworkCost, student: NetworkCost) -> list[str]:
    """What became of the teacher's time at each size of map."""
    before, after = merge_by_resolution(teacher.stages()), merge_by_resolution(student.stages())
    found = [
        _change(before.get(resolution), after.get(resolution)) for resolution in {**before, **after}
    ]
    return [text for text in found if text]


def _change(before: StageCost | None, after: StageCost | None) -> str:
    if after is None:
        assert before is not None, "a resolution is one of the two networks'"
        return (
            f"{before.resolution} the student computes nothing (teacher {before.ms:.3g} ms, "
            f"{before.share:.0%})"
        )
    if before is None:
        return (
            f"{after.resolution} only the student computes: {after.ms:.3g} ms in {_layers(after)}"
        )
    return (
        f"{after.resolution} the teacher takes {before.ms:.3g} ms in {_layers(before)}, "
        f"the student {after.ms:.3g} ms in {_layers(after)}"
    )


def _layers(stage: StageCost) -> str:
    if not stage.widths:
        return "no layers"
    low, high = min(stage.widths), max(stage.widths)
    channels = f"{high}" if low == high else f"up to {high}"
    return f"{len(stage.widths)} layer{'s' * (len(stage.widths) > 1)} of {channels} channels"


def neighbours(
    chosen: Point, points: Sequence[Point], budget: Budget, metric: Metric, teacher: Point
) -> list[str]:
    """Why not the next faster nor the next slower point of the front.

    Args:
        chosen: of `points`, or next to them where only a part of the points was evaluated so well.
        points: the front, fastest first.
        budget: what was requested.
        metric: of the qualities.
        teacher: what a speed-up is against.
    """
    found = []
    faster = max((p for p in points if p.ms < chosen.ms), key=lambda p: p.ms, default=None)
    slower = min((p for p in points if p.ms > chosen.ms), key=lambda p: p.ms, default=None)
    if chosen not in points:
        found.append(f"not on the front, but evaluated by {EVIDENCE[chosen.evidence]}")
    if faster is not None:
        saved = 1 - faster.ms / chosen.ms
        found.append(
            f"the next faster, {arch_string(faster.architecture)}, saves {saved:.0%} "
            f"and is expected to {_compare_quality(faster, chosen, metric)}"
        )
    if slower is not None:
        found.append(
            f"the next slower, {arch_string(slower.architecture)}, "
            f"{_price(slower, budget, teacher)} and is expected to "
            f"{_compare_quality(slower, chosen, metric)}"
        )
    return found or ["it is the only point of the front"]


def _compare_quality(point: Point, chosen: Point, metric: Metric) -> str:
    """How the quality of a point compares, and whether the two can be distinguished."""
    verb = "gain" if metric.is_better(point.quality, chosen.quality) else "lose"
    apart = abs(point.quality - chosen.quality)
    text = f"{verb} {metric.difference(apart)} of {metric.name}"
    sd = math.hypot(point.quality_sd, chosen.quality_sd)
    return f"{text}, less than the uncertainty" if apart < NINETY * sd else text


def _price(point: Point, budget: Budget, teacher: Point) -> str:
    if keeps(budget, point, teacher):
        return f"takes {point.ms:.3g} ms"
    limit = limit_ms(budget, teacher)
    if limit is None:
        return f"needs {point.macs:.3g} MACs, over the budget,"
    return f"takes {point.ms:.3g} ms, over the budget of {limit:.3g} ms,"


def _caveats(chosen: Point, teacher: Point, estimate: Estimate, where: str) -> list[str]:
    """What the prediction rests on: the model's own notes, and what can be done about them."""
    found = [f"of the prediction: {note}" for note in chosen.latency.notes]
    unknown = [part for part in estimate.parts if not part.known]
    if unknown:
        share = sum(part.ms for part in unknown) / estimate.ms
        names = ", ".join(dict.fromkeys(part.name for part in unknown))
        found.append(f"no model of {names}: counted as memory-bound, {share:.0%} of the latency")
    # where the teacher was timed, others were, which corrected this one
    timed = chosen.measured_ms is not None or teacher.measured_ms is not None
    if not chosen.latency.validated and not timed:
        text = (
            f"no measurement backs {chosen.latency.ms:.3g} ms: search with --measure on the device"
        )
        calibrate = f", or kdcompile targets calibrate {where}"
        found.append(text if estimate.calibrated else text + calibrate)
    return found


def stage_records(cost: NetworkCost) -> list[Mapping[str, Any]]:
    """Its stages as JSON values, for the record of a search."""
    return [
        {
            "place": stage.name,
            "ms": stage.ms,
            "share": stage.share,
            "bounds": dict(stage.bounds),
            "widths": list(stage.widths),
            "kernels": stage.kernels,
        }
        for stage in cost.stages()
    ]
