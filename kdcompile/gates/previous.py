"""Gate `previous`: the student is as accurate as the network of an earlier bundle.

Two questions on the same test images, and the worse answer decides: is its metric no worse by more
than the margin, by the rule of `noninferior` with the earlier network as the reference; and did no
more images get worse than `max_flips` allows, by the rule of `flips`, where the spec says how many.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field

from kdcompile.config.gates import MetricGate, Percent, Share, fraction
from kdcompile.core.report import GateResult, Measurement, Verdict
from kdcompile.gates.accuracy import NO_MAPS, difference, never_wrong
from kdcompile.gates.churn import Flips, find_flips
from kdcompile.gates.context import Floats, VerifyContext
from kdcompile.gates.registry import Decidable, gate, of_all
from kdcompile.stats.drawn import bounds_of
from kdcompile.stats.noninferiority import Decision, compare, limits_text, observed_text
from kdcompile.tasks.task import Task

ABSENT = "no earlier bundle was named: kdcompile build --baseline BUNDLE"
ORDER: tuple[Verdict, ...] = ("failed", "inconclusive", "passed")  # the worse decides


class PreviousGate(MetricGate):
    """Student against the network of an earlier bundle, on the same test images.

    The limits are those of the accuracy gate, beside the earlier network's values.
    """

    local = ("bundle",)

    bundle: Path | None = Field(
        default=None, description="folder of the earlier bundle; --baseline BUNDLE names it too"
    )
    max_increase: Percent = "5%"
    margin: Percent = "15%"
    max_flips: Share | None = Field(
        default=None, description="largest share of images that got worse; told only, if absent"
    )
    tolerance: Percent = "100%"

    def files(self, folder: Path) -> Mapping[str, Path]:
        """Its manifest, which has the hashes of all others."""
        return {} if self.bundle is None else {"bundle": folder / self.bundle / "manifest.json"}


def _threshold(settings: PreviousGate, task: Task) -> str:
    metric = task.find_metric(settings.metric)
    text = limits_text(metric, settings.max_increase, settings.margin, "the earlier bundle's")
    if settings.max_flips is not None:
        text += f"; at most {settings.max_flips} of the images worse, at 95 %"
    return text


def _easiest(
    settings: PreviousGate, task: Task, true: Floats, classes: Sequence[str] | None, seed: int
) -> Decidable:
    metric = task.find_metric(settings.metric)

    def rule(n: int) -> tuple[Verdict, str]:
        right = np.zeros(n)
        found = never_wrong(metric, n, settings.margin, settings.max_increase, seed)
        worse = find_flips(task, right, right, fraction(settings.tolerance))
        verdict, reasons = both(found, worse, settings.max_flips)
        return verdict, "; ".join(reasons)

    return of_all("previous", len(true), rule)


@gate(
    "previous",
    PreviousGate,
    threshold=_threshold,
    needs=("predictions",),
    kind="accuracy",
    rank=8,
    easiest=_easiest,
    on_board="build_engine.py --test PACK predicts the images; kdcompile bundle --merge decides",
)
def previous(settings: PreviousGate, context: VerifyContext) -> GateResult:
    """Judge the student beside the earlier network by the rules that this module states."""
    task, outcomes, earlier = context.task, context.outcomes, context.earlier
    metric = task.find_metric(settings.metric)
    if earlier is None or outcomes.previous is None:
        return _result(settings, context, "skipped", "not compared", ABSENT, ())
    if not outcomes.knows("student", metric):
        return _result(settings, context, "skipped", "no density maps", NO_MAPS, ())
    found = compare(
        metric,
        outcomes.errors(task, "previous", metric),
        outcomes.errors(task, "student", metric),
        margin=fraction(settings.margin),
        max_increase=fraction(settings.max_increase),
        seed=context.seed,
        find=bounds_of(metric),
    )
    errors = [task.errors(p, outcomes.true) for p in (outcomes.previous, outcomes.student)]
    worse = find_flips(task, errors[0], errors[1], fraction(settings.tolerance))
    verdict, reasons = both(found, worse, settings.max_flips)
    reasons += [f"worse is {worse.rule}", f"{earlier.title} was {earlier.ran}"]
    observed = f"{observed_text(metric, found.reference, found.value)}; {worse.text()}"
    told = (
        difference(context, metric, found, "earlier", len(outcomes.names)),
        worse.measurement(context, "the earlier bundle's"),
    )
    reason = f"{'; '.join(reasons)}, on {outcomes.scope}"
    return _result(settings, context, verdict, observed, reason, told)


def both(found: Decision, worse: Flips, max_flips: str | None) -> tuple[Verdict, list[str]]:
    """The worse of the two answers, and the reasons; the metric's alone without `max_flips`."""
    if max_flips is None:
        return found.verdict, [found.reason]
    second, reason = worse.judge(fraction(max_flips))
    verdict = min(found.verdict, second, key=ORDER.index)
    return verdict, [found.reason, f"images that got worse: {reason}"]


def _result(
    settings: PreviousGate,
    context: VerifyContext,
    verdict: Verdict,
    observed: str,
    reason: str,
    told: tuple[Measurement, ...],
) -> GateResult:
    return GateResult(
        "previous", verdict, context.evidence, settings.required,
        _threshold(settings, context.task), observed, reason, told,
    )  # fmt: skip
