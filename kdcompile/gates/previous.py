"""Is the student as accurate as the network of an earlier bundle, on the same test photos?

Two questions, and the worse answer decides: is its metric no worse by more than the margin, by the
rule of `noninferior` with the earlier network as the reference; and did no more photos get worse
than `max_flips` allows, by the rule of `flips`, where the spec says how many.
"""

from kdcompile.config.gates import PreviousGate, fraction
from kdcompile.core.report import GateResult, Measurement, Verdict
from kdcompile.gates.accuracy import NO_MAPS, difference
from kdcompile.gates.churn import Flips, find_flips
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import gate
from kdcompile.stats.noninferiority import Decision, compare, limits_text, observed_text
from kdcompile.tasks.metric import METRICS

ABSENT = "no earlier bundle was named: kdcompile build --baseline BUNDLE"
ORDER: tuple[Verdict, ...] = ("failed", "inconclusive", "passed")  # the worse decides


def _threshold(settings: PreviousGate) -> str:
    assert settings.metric is not None, "verify names the metric that the spec leaves to the task"
    metric = METRICS[settings.metric]
    text = limits_text(metric, settings.max_increase, settings.margin, "the earlier bundle's")
    if settings.max_flips is not None:
        text += f"; at most {settings.max_flips} of the photos worse, at 95 %"
    return text


@gate(
    "previous",
    threshold=_threshold,
    on_board="build_engine.py --test PACK predicts the photos; kdcompile bundle --merge judges",
)
def previous(settings: PreviousGate, context: VerifyContext) -> GateResult:
    """Judge the student beside the earlier network by the rules that this module states."""
    task, outcomes, earlier = context.task, context.outcomes, context.earlier
    metric = task.find_metric(settings.metric)
    settings = settings.model_copy(update={"metric": metric.name})
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
    return verdict, [found.reason, f"photos that got worse: {reason}"]


def _result(
    settings: PreviousGate,
    context: VerifyContext,
    verdict: Verdict,
    observed: str,
    reason: str,
    told: tuple[Measurement, ...],
) -> GateResult:
    return GateResult(
        "previous", verdict, context.evidence, settings.required, _threshold(settings), observed,
        reason, told,
    )  # fmt: skip
