"""Gate `size_mb`: the size of the largest file that may be deployed."""

from pydantic import Field

from kdcompile.config.gates import GateSpec
from kdcompile.core.report import GateResult
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import gate
from kdcompile.tasks.task import Task

MB = 1e6


class SizeGate(GateSpec):
    """The largest deployable file, in units of 10^6 bytes."""

    board_limit = "size_mb", "max"
    max: float = Field(gt=0)


def _threshold(settings: SizeGate, task: Task) -> str:
    return f"at most {settings.max:g} MB"


@gate(
    "size_mb",
    SizeGate,
    threshold=_threshold,
    needs=("files",),
    kind="size",
    rank=3,
)
def size_mb(settings: SizeGate, context: VerifyContext) -> GateResult:
    """Passed when the largest deployable file is within the spec's, in units of 10^6 bytes."""
    name, size = max(context.files.items(), key=lambda item: item[1])
    return GateResult(
        name="size_mb",
        verdict="passed" if size / MB <= settings.max else "failed",
        evidence=context.evidence,
        required=settings.required,
        threshold=_threshold(settings, context.task),
        observed=f"{size / MB:.3g} MB",
        reason=f"{name} is the largest of {len(context.files)} deployable files",
        measurements=(context.measurement("largest file", size / MB, "MB", mode=name),),
    )
