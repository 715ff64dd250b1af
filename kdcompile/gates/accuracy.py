"""Is the deployed student as accurate as the teacher, on the same test photos?

With t the teacher's metric, s that of the deployed student, d how much worse s is (s - t for an
error, t - s for a rate of right answers), and low, high the one-sided 95 % bounds of d, by a
bootstrap over photos, each photo drawn with both of its errors, or for a rate by the score interval
of paired proportions (`rates`), the verdict is

    failed        d > max_increase, the point estimate is over its limit;
                  or low > margin, the student is worse than the margin allows
    inconclusive  otherwise, if high > margin, these photos cannot exclude that it is worse;
                  or if there is one photo only
    passed        otherwise

where the limits of an error are shares of t, and those of a rate percentage points. A student over
the limit by chance fails too: a limit on the point estimate is what was asked for.
"""

from kdcompile.data.metric import METRICS, Metric
from kdcompile.gates.bootstrap import interval
from kdcompile.gates.context import Floats, VerifyContext
from kdcompile.gates.rates import rate_decrease_interval
from kdcompile.gates.registry import gate
from kdcompile.report import GateResult, Verdict
from kdcompile.spec import AccuracyGate, fraction


def _threshold(settings: AccuracyGate) -> str:
    assert settings.metric is not None, "verify names the metric that the spec leaves to the task"
    metric = METRICS[settings.metric]
    limit, margin = settings.max_increase, settings.margin
    if metric.points:
        limit, margin = (f"{text.rstrip('%')} points" for text in (limit, margin))
    relation = "under" if metric.higher else "over"
    return f"{metric.name} at most {limit} {relation} the teacher's, 95 % bound within {margin}"


@gate(
    "accuracy",
    threshold=_threshold,
    on_board="build_engine.py --test PACK judges it; kdcompile bundle --test-pack FOLDER writes it",
)
def accuracy(settings: AccuracyGate, context: VerifyContext) -> GateResult:
    """Judge the student's predictions by the rule that this module states."""
    task, outcomes = context.task, context.outcomes
    metric = task.find_metric(settings.metric)
    settings = settings.model_copy(update={"metric": metric.name})
    errors_t = task.errors(outcomes.teacher, outcomes.true)
    errors_s = task.errors(outcomes.student, outcomes.true)
    teacher, student = metric(errors_t), metric(errors_s)
    low = high = None
    if len(outcomes.names) > 1:
        low, high = _bounds(metric, errors_t, errors_s, context.seed)
    verdict, reason = _verdict(settings, metric, teacher, student, low, high)
    return GateResult(
        name="accuracy",
        verdict=verdict,
        evidence=context.evidence,
        required=settings.required,
        threshold=_threshold(settings),
        observed=_observed(metric, teacher, student),
        reason=f"{reason}, on {outcomes.scope}",
        measurements=(
            context.measurement(
                f"{metric.name} {metric.worsening}",
                metric.worse_by(student, teacher),
                task.unit_of(metric),
                low=low,
                high=high,
                n=len(outcomes.names),
                mode=f"{'teacher minus student' if metric.higher else 'student minus teacher'}, "
                "paired over photos; each bound one-sided 95 %",
            ),
        ),
    )


def _bounds(metric: Metric, errors_t: Floats, errors_s: Floats, seed: int) -> tuple[float, float]:
    """One-sided 95 % bounds of how much worse the student is."""
    if metric.points:
        return rate_decrease_interval(errors_t, errors_s, confidence=0.9)
    return interval(
        (errors_t, errors_s),
        lambda t, s, axis: metric.worse_by(metric.of(s, axis), metric.of(t, axis)),
        confidence=0.9,
        seed=seed,
    )


def _observed(metric: Metric, teacher: float, student: float) -> str:
    change = ""
    if metric.points:
        change = f" ({100 * (student - teacher):+.2f} points)"
    elif teacher > 0:
        change = f" ({(student / teacher - 1):+.1%})"
    return f"{metric.name} {metric.text(student)} against {metric.text(teacher)}{change}"


def _verdict(
    settings: AccuracyGate,
    metric: Metric,
    teacher: float,
    student: float,
    low: float | None,
    high: float | None,
) -> tuple[Verdict, str]:
    limit = metric.limit(teacher, fraction(settings.max_increase))
    margin = metric.allowance(teacher, fraction(settings.margin))
    if metric.is_better(limit, student):
        relation = "under" if metric.higher else "over"
        shown = f"{metric.name} {metric.text(student)}"
        return "failed", f"{shown} is {relation} the limit of {metric.text(limit)}"
    if low is None or high is None:
        return "inconclusive", "one photo has no spread to judge by"
    allowed = f"the margin of {metric.difference(margin)}"
    worse = f"the {metric.worsening}"
    if low > margin:
        return "failed", f"{worse} is at least {metric.difference(low)} at 95 %, over {allowed}"
    if not high <= margin:  # no number proves nothing
        return "inconclusive", f"{worse} may be {metric.difference(high)} at 95 %, over {allowed}"
    return "passed", f"{worse} is at most {metric.difference(high)} at 95 %, within {allowed}"
