"""Gate `memory_mb`: the peak memory of the network."""

from pydantic import Field

from kdcompile.config.gates import GateSpec
from kdcompile.core.report import GateResult, Verdict
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import gate
from kdcompile.gates.resources import resource_numbers, resources_of, unread
from kdcompile.remote.usage import Absent
from kdcompile.tasks.task import Task


class MemoryGate(GateSpec):
    """Peak memory of the network, in units of 10^6 bytes, where the device tells it."""

    board_limit = "memory_mb", "max"
    max: float = Field(gt=0)


def _threshold(settings: MemoryGate, task: Task) -> str:
    return f"at most {settings.max:g} MB"


@gate(
    "memory_mb",
    MemoryGate,
    threshold=_threshold,
    needs=("usage",),
    kind="memory",
    rank=5,
    on_board="build_engine.py of the kit reads it; kdcompile bundle --merge decides",
)
def memory_mb(settings: MemoryGate, context: VerifyContext) -> GateResult:
    """Passed when the peak is within the maximum; skipped where nothing tells it."""
    found, threshold = resources_of(context).memory, _threshold(settings, context.task)
    if settings.evidence == "predicted":
        found = Absent("no model predicts the peak memory")
    if isinstance(found, Absent):
        return unread("memory_mb", settings, threshold, context, found)
    verdict: Verdict = "passed" if found.mb <= settings.max else "failed"
    numbers = tuple(m for m in resource_numbers(context) if m.name == "peak memory")
    return GateResult(
        "memory_mb", verdict, context.evidence, settings.required, threshold,
        f"{found.mb:.4g} MB", found.what, numbers,
    )  # fmt: skip
