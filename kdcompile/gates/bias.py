"""Gate `bias`: the deployed student neither over- nor underestimates on the whole.

The bias is the mean of prediction less annotation over the test images. With low and high the ends
of its two-sided 95 % interval (`stats.bootstrap.interval`) and L the limit, a share of the mean
annotated value, the verdict is

    passed        -L <= low and high <= L
    failed        low > L or high < -L
    inconclusive  otherwise
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdcompile.config.gates import GateSpec, Share, fraction
from kdcompile.core.errors import KDError
from kdcompile.core.report import GateResult, Measurement, Verdict
from kdcompile.gates.context import Floats, VerifyContext
from kdcompile.gates.registry import Decidable, gate, of_all
from kdcompile.stats.bootstrap import interval
from kdcompile.tasks.metric import MAE, RMSE
from kdcompile.tasks.task import Task

CONFIDENCE = 0.95


class BiasGate(GateSpec):
    """The student's mean signed error on the test images, as a share of the mean true value."""

    max: Share


@dataclass(frozen=True)
class Bias:
    """A mean signed error with its interval, in the task's unit."""

    value: float
    low: float
    high: float

    def judge(self, limit: float) -> Verdict:
        """The verdict by the rule that this module states."""
        if -limit <= self.low and self.high <= limit:
            return "passed"
        return "failed" if self.low > limit or self.high < -limit else "inconclusive"


def is_signed(task: Task) -> bool:
    """Whether the errors of a task say in which direction a prediction is wrong."""
    return task.metric in (MAE, RMSE)


def find_bias(errors: Floats, seed: int) -> Bias:
    """The mean of signed errors [N]; no interval of fewer than two images."""
    low, high = -math.inf, math.inf
    if len(errors) > 1:
        low, high = interval((errors,), np.mean, confidence=CONFIDENCE, seed=seed)
    return Bias(float(errors.mean()), low, high)


def bias_measurements(context: VerifyContext) -> list[Measurement]:
    """The bias of the teacher and of the deployed student; none of a task without signed errors."""
    task, outcomes = context.task, context.outcomes
    rows = (("teacher", context.host, "fp32"), ("student", context.deployed, context.precision))
    found = []
    for who, origin, precision in rows if is_signed(task) else ():
        errors = outcomes.errors(task, who, task.metric)
        own, known = find_bias(errors, context.seed), len(errors) > 1
        found.append(
            context.measurement(
                f"{who} bias",
                own.value,
                task.unit,
                origin=origin,
                low=own.low if known else None,
                high=own.high if known else None,
                n=len(errors),
                precision=precision,
                mode=f"prediction less annotation, {outcomes.scope}",
            )
        )
    return found


def _threshold(settings: BiasGate, task: Task) -> str:
    if not is_signed(task):
        raise KDError(
            "gate-task",
            f"the errors of {task.kind} have no sign, so they have no bias",
            where="[gates] bias",
            fix="leave gates.bias out",
        )
    return f"within {settings.max} of the mean annotated value, at 95 %"


def _easiest(
    settings: BiasGate, task: Task, true: Floats, classes: Sequence[str] | None, seed: int
) -> Decidable:
    _threshold(settings, task)

    def rule(n: int) -> tuple[Verdict, str]:
        return find_bias(np.zeros(n), seed).judge(0.0), "one image has no interval"

    return of_all("bias", len(true), rule)


@gate(
    "bias",
    BiasGate,
    threshold=_threshold,
    needs=("predictions",),
    kind="accuracy",
    rank=8,
    easiest=_easiest,
    on_board="build_engine.py --test PACK predicts; kdcompile bundle --merge decides",
)
def bias(settings: BiasGate, context: VerifyContext) -> GateResult:
    """Judge the student's mean signed error by the rule that this module states."""
    task, outcomes = context.task, context.outcomes
    threshold = _threshold(settings, task)
    limit = fraction(settings.max) * float(np.abs(outcomes.true.mean()))
    found = find_bias(outcomes.errors(task, "student", task.metric), context.seed)
    unit = "" if task.unit == "1" else f" {task.unit}"
    return GateResult(
        name="bias",
        verdict=found.judge(limit),
        evidence=context.evidence,
        required=settings.required,
        threshold=threshold,
        observed=f"{found.value:+.4g} [{found.low:+.4g}, {found.high:+.4g}]",
        reason=f"at most {limit:.4g}{unit} in either direction, on {outcomes.scope}",
    )
