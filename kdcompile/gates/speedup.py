"""Gate `speedup`: the teacher's latency over the student's."""

from typing import Any

import numpy as np
from pydantic import Field

from kdcompile.config.gates import GateSpec
from kdcompile.core.report import Evidence, GateResult, Measurement, Verdict
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import gate
from kdcompile.latency.interference import MOST
from kdcompile.stats.latency_interval import limit_verdict, ratio_interval
from kdcompile.tasks.task import Task


class SpeedupGate(GateSpec):
    """Teacher latency over student latency, on the target.

    Of a target that is not this machine the latency model decides it, with its band, until the
    device is measured; `evidence = "host"` is accepted and changes nothing there.
    """

    board_limit = "speedup", "min"
    min: float = Field(gt=0)


def _threshold(settings: SpeedupGate, task: Task) -> str:
    return f"at least {settings.min:g}x"


@gate(
    "speedup",
    SpeedupGate,
    threshold=_threshold,
    needs=("latency",),
    kind="latency",
    rank=2,
    on_board="build_engine.py --test PACK of the kit times teacher and student interleaved",
    host_decides=False,
)
def speedup(settings: SpeedupGate, context: VerifyContext) -> GateResult:
    """Passed when the whole 95 % interval reaches the minimum, failed when none of it does.

    What was timed decides where it was timed on the target itself. For another device, and with
    `evidence = "predicted"`, the interval is the band of the target's latency model instead,
    whatever this machine measured; the gate is skipped where the model has no estimate at the
    chosen precision. Beside other work on this machine a timed ratio decides nothing.
    """
    on_device = context.evidence == "device"
    if on_device or (context.ran_on_target and settings.evidence != "predicted"):
        found: Measurement | None = measured_speedup(context)
    else:
        found = predicted_speedup(context)
    if found is None:
        reason = (
            context.unpredicted
            or f"no latency estimate of {context.target.name} at {context.precision}"
        )
        return _result(
            settings, context, "skipped", "predicted", "none", reason + _aside(context), ()
        )
    assert found.low is not None, "a speed-up has an interval"
    assert found.high is not None, "a speed-up has an interval"
    reason = found.mode if found.evidence != "predicted" else found.mode + _aside(context)
    if found.evidence == "host" and context.latency.others > MOST:
        verdict: Verdict = "inconclusive"
        reason += f", and {MOST:.0%} is the most that decides: build again when nothing else runs"
    else:
        verdict = limit_verdict(found.low, found.high, settings.min, is_least=True)
    observed = f"{found.value:.2f}x ({found.low:.2f} to {found.high:.2f})"
    return _result(settings, context, verdict, found.evidence, observed, reason, (found,))


def _aside(context: VerifyContext) -> str:
    """What this machine measured, which decides nothing of another device."""
    if context.ran_on_target:
        return ""
    ratio = measured_speedup(context).value
    return f"; the {ratio:.2f}x measured on this machine is information, it decides no other device"


def measured_speedup(context: VerifyContext) -> Measurement:
    """Teacher latency over student latency, as timed, with its 95 % interval."""
    latency = context.latency
    ratio, low, high = ratio_interval(latency.times, context.seed)
    return context.measurement(
        "speed-up",
        ratio,
        "x",
        low=low,
        high=high,
        n=len(latency.times.a),
        precision=latency.precision,
        mode=latency.mode,
    )


def predicted_speedup(context: VerifyContext) -> Measurement | None:
    """The latency model's speed-up at the chosen precision, or None without an estimate.

    What the model has wrong about a device touches teacher and student alike, so the band is that
    of their ratio: `latency_model.predict.ratio_factor`.
    """
    found = context.predictions.get(context.precision)
    if found is None:
        return None
    ratio = found.teacher / found.student
    return context.measurement(
        "speed-up",
        ratio,
        "x",
        origin=context.model,
        low=found.speedup[0],
        high=found.speedup[1],
        mode=f"latency model, {'validated' if found.validated else 'unvalidated'}",
    )


def target_speed(context: VerifyContext) -> dict[str, Any]:
    """Both latencies on the target in ms and their ratio, for the report's first table.

    Also `host`: what this machine measured, where that is not the target. No latencies where
    the model has no estimate at the chosen precision.
    """
    latency = context.latency
    here = {
        "teacher_ms": float(np.median(latency.times.a)),
        "student_ms": float(np.median(latency.times.b)),
        "teacher_precision": latency.teacher_precision,
        "precision": latency.precision,
    }
    timed = measured_speedup(context)
    if context.ran_on_target:
        return {"evidence": context.evidence, **here, **_bounds(timed)}
    model = {"evidence": "predicted", "host": {**here, **_bounds(timed)}}
    found, ratio = context.predictions.get(context.precision), predicted_speedup(context)
    if found is None or ratio is None:
        return model
    return model | _bounds(ratio) | {
        "teacher_ms": found.teacher,
        "student_ms": found.student,
        "teacher_precision": found.teacher_precision,
        "precision": context.precision,
        "validated": found.validated,
    }  # fmt: skip


def _bounds(ratio: Measurement) -> dict[str, Any]:
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}


def _result(
    settings: SpeedupGate,
    context: VerifyContext,
    verdict: Verdict,
    evidence: Evidence,
    observed: str,
    reason: str,
    measurements: tuple[Measurement, ...],
) -> GateResult:
    return GateResult(
        name="speedup",
        verdict=verdict,
        evidence=evidence,
        required=settings.required,
        threshold=_threshold(settings, context.task),
        observed=observed,
        reason=reason,
        measurements=measurements,
    )
