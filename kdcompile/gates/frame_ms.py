"""Gate `frame_ms`: the whole frame of the deployed sample, from an image file to the result."""

from pydantic import Field

from kdcompile.config.gates import GateSpec
from kdcompile.core.report import GateResult, Measurement, Verdict
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.frame import frame_numbers
from kdcompile.gates.registry import gate
from kdcompile.latency.frame_times import FrameTimes, PredictedFrame
from kdcompile.remote.usage import Absent
from kdcompile.stats.latency_interval import limit_verdict
from kdcompile.tasks.task import Task


class FrameGate(GateSpec):
    """Milliseconds of a whole frame: decode, preprocess, copy, inference and post-process."""

    max: float = Field(gt=0)


def _threshold(settings: FrameGate, task: Task) -> str:
    return f"at most {settings.max:g} ms a frame"


@gate(
    "frame_ms",
    FrameGate,
    threshold=_threshold,
    needs=("frame",),
    kind="latency",
    rank=9,
    on_board="build_engine.py --images IMAGE... of the kit times it; kdcompile bundle --merge "
    "decides",
    host_decides=False,
)
def frame_ms(settings: FrameGate, context: VerifyContext) -> GateResult:
    """Passed when the whole 95 % interval is within the maximum, failed when none of it is.

    What was timed decides where it was timed on the target itself. For another device a frame
    whose predicted parts alone exceed the maximum fails as predicted; else nothing is decided
    before the device is measured, as the other parts are not predicted.
    """
    found = context.frame
    if isinstance(found, FrameTimes) and not context.ran_on_target:
        reason = f"this machine's {found.line()} is information, it decides no other device"
        return _result(settings, context, "skipped", reason)
    if isinstance(found, FrameTimes) and settings.evidence != "predicted":
        if found.disturbed is not None:
            return _result(settings, context, "inconclusive", found.disturbed)
        verdict = limit_verdict(found.low, found.high, settings.max)
        return _result(settings, context, verdict, found.mode)
    if isinstance(found, PredictedFrame):
        verdict = "failed" if found.low > settings.max else "skipped"
        reason = f"{found.line()}: the device decides" if verdict == "skipped" else found.line()
        return _result(settings, context, verdict, reason)
    reason = "a whole frame is not predicted here: it is measured"
    if not isinstance(found, FrameTimes):
        reason = found.reason if isinstance(found, Absent) else "no whole frame was timed"
    return _result(settings, context, "skipped", reason)


def _result(
    settings: FrameGate, context: VerifyContext, verdict: Verdict, reason: str
) -> GateResult:
    """A skipped gate of a target that is not here is not required: its pending twin is."""
    found, evidence = context.frame, context.evidence
    observed, numbers = "no number", tuple[Measurement, ...]()
    if isinstance(found, FrameTimes):
        observed, numbers = found.line(), frame_numbers(context)
    elif isinstance(found, PredictedFrame):
        observed, evidence = f"at least {found.low:.4g} ms", "predicted"
        numbers = frame_numbers(context)
    owed = verdict == "skipped" and not context.ran_on_target
    return GateResult(
        "frame_ms", verdict, evidence, settings.required and not owed,
        _threshold(settings, context.task), observed, reason, numbers,
    )  # fmt: skip
