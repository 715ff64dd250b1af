"""Gate `energy_mj`: the energy of an inference."""

from pydantic import Field

from kdcompile.config.gates import Evidence, GateSpec
from kdcompile.core.report import GateResult
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import gate
from kdcompile.gates.resources import resource_numbers, resources_of, unread
from kdcompile.remote.usage import Absent
from kdcompile.stats.latency_interval import limit_verdict
from kdcompile.tasks.task import Task


class EnergyGate(GateSpec):
    """Energy of one inference, in mJ, where the device tells it."""

    board_limit = "energy_mj", "max"
    evidence: Evidence = "device"
    max: float = Field(gt=0)


def _threshold(settings: EnergyGate, task: Task) -> str:
    return f"at most {settings.max:g} mJ an inference"


@gate(
    "energy_mj",
    EnergyGate,
    threshold=_threshold,
    needs=("usage",),
    kind="energy",
    rank=4,
    on_board="build_engine.py of the kit reads the power; kdcompile bundle --merge decides",
)
def energy_mj(settings: EnergyGate, context: VerifyContext) -> GateResult:
    """Passed when the whole 95 % interval is within the maximum, failed when none of it is.

    It is the energy in all, what the idle device draws with it, as a battery has to give it. Where
    nothing tells it the gate is skipped: a limit that was not held against a number is not kept.
    """
    found, threshold = resources_of(context).energy, _threshold(settings, context.task)
    if settings.evidence == "predicted":
        found = Absent("no model predicts the energy of an inference")
    if isinstance(found, Absent):
        return unread("energy_mj", settings, threshold, context, found)
    verdict = limit_verdict(found.low, found.high, settings.max)
    observed = (
        f"{found.mj:.3g} mJ ({found.low:.3g} to {found.high:.3g}), "
        f"{found.above_idle_mj:.3g} mJ of it above idle"
    )
    reason = (
        f"{found.watts:.3g} W, {found.idle_watts:.3g} W idle, over {found.inferences} inferences; "
        f"{found.samples} readings of {found.source} ({' + '.join(found.judged)}), "
        f"{found.hz:.0f} a second"
    )
    numbers = tuple(m for m in resource_numbers(context) if m.name.startswith("energy"))
    return GateResult(
        "energy_mj", verdict, context.evidence, settings.required, threshold, observed, reason,
        numbers,
    )  # fmt: skip
