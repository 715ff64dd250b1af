"""Gate `worst`: no test image may be off by more than so many heads."""

import numpy as np
from pydantic import Field

from kdcompile.config.gates import GateSpec
from kdcompile.core.report import GateResult
from kdcompile.gates.registry import gate


class WorstGate(GateSpec):
    """The largest error of a test image."""

    max: float = Field(gt=0)


def in_words(settings, task):
    """The threshold."""
    return f"at most {settings.max:g} on any image"


@gate(
    "worst",
    WorstGate,
    threshold=in_words,
    needs=("predictions",),
    kind="accuracy",
    on_board="build_engine.py --test PACK predicts the images; kdcompile bundle --merge decides",
)
def worst(settings, context):
    """Passed where every test image is within the limit."""
    outcomes = context.outcomes
    largest = float(np.max(np.abs(context.task.errors(outcomes.student, outcomes.true))))
    return GateResult(
        name="worst",
        verdict="passed" if largest <= settings.max else "failed",
        evidence=context.evidence,
        required=settings.required,
        threshold=in_words(settings, context.task),
        observed=f"{largest:.4g}",
        reason=f"on {outcomes.scope}",
        measurements=(context.measurement("largest error", largest, context.task.unit),),
    )
