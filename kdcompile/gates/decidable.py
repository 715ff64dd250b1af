"""Can this many test photos decide a gate at all? By the gates' own rules, before anything runs.

They are asked about the pair that is easiest to judge: a student and a teacher (or an earlier
network) that are never wrong. Where such a student does not pass, none does that comes out as its
teacher on every photo.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdcompile.config.gates import (
    AccuracyGate,
    FlipsGate,
    Gates,
    PreviousGate,
    StrataGate,
    fraction,
)
from kdcompile.core.report import Verdict
from kdcompile.gates.churn import find_flips
from kdcompile.gates.context import Floats
from kdcompile.gates.previous import both
from kdcompile.gates.subgroups import judge_all, judge_parts
from kdcompile.stats.noninferiority import compare
from kdcompile.stats.sample_size import least_number
from kdcompile.tasks.metric import METRICS
from kdcompile.tasks.task import Task

Found = tuple[Verdict, str]


@dataclass(frozen=True)
class Decidable:
    """Whether a gate can be decided.

    Args:
        gate: its name.
        images: test photos that it would be judged on.
        decides: a student that is never wrong passes on them.
        why: what the gate says of it.
        needed: with how many it would pass; None where no number does.
        each: that many in each part, and not in all.
    """

    gate: str
    images: int
    decides: bool
    why: str
    needed: int | None
    each: bool = False


def decidable(
    gates: Gates, task: Task, true: Floats, classes: Sequence[str] | None, seed: int
) -> list[Decidable]:
    """Every gate of the spec that is judged from test photos, in the spec's order.

    Args:
        gates: of the spec.
        task: what is predicted.
        true: the annotated values of the photos that would be judged, [N].
        classes: the names that the data has for them.
        seed: of the resampling.
    """
    gates = gates.with_metrics(task.kind)
    found = []
    for name in ("accuracy", "strata", "flips", "previous"):
        settings = getattr(gates, name)
        if settings is None:
            continue
        if isinstance(settings, StrataGate):
            found.append(_of_parts(settings, task, true, classes, seed))
            continue
        found.append(_of_all(name, len(true), _rule(settings, task, seed)))
    return found


def _of_all(name: str, images: int, rule: Callable[[int], Found]) -> Decidable:
    verdict, why = rule(images)
    needed = least_number(lambda n: rule(n)[0] == "passed")
    return Decidable(name, images, verdict == "passed", why, needed)


def _rule(settings: Any, task: Task, seed: int) -> Callable[[int], Found]:
    """What a gate says of networks that are never wrong on n photos."""

    def accuracy(asked: AccuracyGate | PreviousGate, right: Floats) -> Any:
        assert asked.metric is not None, "every gate has its metric by now"
        margin, most = fraction(asked.margin), fraction(asked.max_increase)
        return compare(
            METRICS[asked.metric], right, right, margin=margin, max_increase=most, seed=seed
        )

    def rule(n: int) -> Found:
        right = np.zeros(n)
        if isinstance(settings, AccuracyGate):
            found = accuracy(settings, right)
            return found.verdict, found.reason
        worse = find_flips(task, right, right, fraction(settings.tolerance))
        if isinstance(settings, FlipsGate):
            return worse.judge(fraction(settings.max))
        verdict, reasons = both(accuracy(settings, right), worse, settings.max_flips)
        return verdict, "; ".join(reasons)

    return rule


def _of_parts(
    settings: StrataGate, task: Task, true: Floats, classes: Sequence[str] | None, seed: int
) -> Decidable:
    assert settings.metric is not None, "every gate has its metric by now"
    metric, margin = METRICS[settings.metric], fraction(settings.margin)
    right = np.zeros(len(true))
    groups = task.groups(true, classes)
    verdict, why = judge_all(judge_parts(groups, metric, right, right, margin, seed), classes)

    def one_passes(n: int) -> bool:
        part = np.zeros(n)
        return compare(metric, part, part, margin=margin, seed=seed).verdict == "passed"

    needed = least_number(one_passes)
    return Decidable("strata", len(true), verdict == "passed", why, needed, each=True)
