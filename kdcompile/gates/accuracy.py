"""Is the deployed student as accurate as the teacher, on the same test photos?

With e the counting errors, the metric is mean |e| (mae) or sqrt(mean e^2) (rmse), t that of the
teacher, s that of the deployed student, and low, high the one-sided 95 % bounds of s - t by a
bootstrap over photos, each photo drawn with both of its errors. The verdict is

    failed        s > t * (1 + max_increase), the point estimate is over its limit;
                  or low > margin * t, the student is worse than the margin allows
    inconclusive  otherwise, if high > margin * t, these photos cannot exclude that it is worse;
                  or if there is one photo only
    passed        otherwise

A student over the limit by chance fails too: a limit on the point estimate is what was asked for.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.gates.bootstrap import interval
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import gate
from kdcompile.report import GateResult, Verdict
from kdcompile.spec import AccuracyGate, fraction

Floats = NDArray[np.float64]


def _threshold(settings: AccuracyGate) -> str:
    return (
        f"{settings.metric} at most {settings.max_increase} over the teacher's, "
        f"95 % bound within {settings.margin}"
    )


def mae(errors: Floats, axis: int = -1) -> Any:
    """Mean absolute error along an axis."""
    return np.mean(np.abs(errors), axis=axis)


def rmse(errors: Floats, axis: int = -1) -> Any:
    """Root mean square error along an axis."""
    return np.sqrt(np.mean(np.square(errors), axis=axis))


METRICS = {"mae": mae, "rmse": rmse}


@gate(
    "accuracy",
    threshold=_threshold,
    on_board="its engine must count the annotated test photos, which the kit does not carry",
)
def accuracy(settings: AccuracyGate, context: VerifyContext) -> GateResult:
    """Judge the student's counting error by the rule that this module states."""
    counts = context.counts
    metric = METRICS[settings.metric]
    errors_t, errors_s = counts.teacher - counts.true, counts.student - counts.true
    teacher, student = float(metric(errors_t)), float(metric(errors_s))
    low = high = None
    if len(counts.names) > 1:
        low, high = interval(
            (errors_t, errors_s),
            lambda t, s, axis: metric(s, axis) - metric(t, axis),
            confidence=0.9,
            seed=context.seed,
        )
    verdict, reason = _verdict(settings, teacher, student, low, high)
    share = f" ({(student / teacher - 1):+.1%})" if teacher > 0 else ""
    name = f"{settings.metric} increase"
    return GateResult(
        name="accuracy",
        verdict=verdict,
        evidence="host",
        required=settings.required,
        threshold=_threshold(settings),
        observed=f"{settings.metric} {student:.4g} against {teacher:.4g}{share}",
        reason=f"{reason}, on {counts.scope}",
        measurements=(
            context.measurement(
                name,
                student - teacher,
                "count",
                low=low,
                high=high,
                n=len(counts.names),
                mode="student minus teacher, paired over photos; each bound one-sided 95 %",
            ),
        ),
    )


def _verdict(
    settings: AccuracyGate, teacher: float, student: float, low: float | None, high: float | None
) -> tuple[Verdict, str]:
    limit = teacher * (1 + fraction(settings.max_increase))
    margin = teacher * fraction(settings.margin)
    if student > limit:
        return "failed", f"{settings.metric} {student:.4g} is over the limit of {limit:.4g}"
    if low is None or high is None:
        return "inconclusive", "one photo has no spread to judge by"
    allowed = f"the margin of {margin:.4g}"
    if low > margin:
        return "failed", f"the increase is at least {low:.4g} at 95 %, over {allowed}"
    if high > margin:
        return "inconclusive", f"the increase may be {high:.4g} at 95 %, over {allowed}"
    return "passed", f"the increase is at most {high:.4g} at 95 %, within {allowed}"
