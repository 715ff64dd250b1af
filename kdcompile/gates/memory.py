"""How much memory does the network take at most?"""

from kdcompile.bench.power import Absent
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import gate
from kdcompile.gates.resources import resource_numbers, resources_of
from kdcompile.report import GateResult, Measurement, Verdict
from kdcompile.spec_gates import MemoryGate


def _threshold(settings: MemoryGate) -> str:
    return f"at most {settings.max:g} MB"


@gate(
    "memory_mb",
    threshold=_threshold,
    on_board="a build with --via the board reads it; the kit does not",
)
def memory_mb(settings: MemoryGate, context: VerifyContext) -> GateResult:
    """Passed when the peak is within the maximum; skipped where nothing tells it."""
    found = resources_of(context).memory
    if settings.evidence == "predicted":
        found = Absent("no model predicts the peak memory")
    if isinstance(found, Absent):
        return _result(settings, context, "skipped", "no reading", found.reason, ())
    verdict: Verdict = "passed" if found.mb <= settings.max else "failed"
    numbers = tuple(m for m in resource_numbers(context) if m.name == "peak memory")
    observed = f"{found.mb:.4g} MB"
    return _result(settings, context, verdict, observed, found.what, numbers)


def _result(
    settings: MemoryGate,
    context: VerifyContext,
    verdict: Verdict,
    observed: str,
    reason: str,
    measurements: tuple[Measurement, ...],
) -> GateResult:
    return GateResult(
        name="memory_mb",
        verdict=verdict,
        evidence=context.evidence,
        required=settings.required,
        threshold=_threshold(settings),
        observed=observed,
        reason=reason,
        measurements=measurements,
    )
