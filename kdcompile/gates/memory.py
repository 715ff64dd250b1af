"""How much memory does the network take at most?"""

from typing import Protocol

from kdcompile.bench.power import Absent
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.resources import resource_numbers, resources_of
from kdcompile.report import Evidence, GateResult, Measurement, Verdict


class Limit(Protocol):
    """Settings of the gate: `max` in units of 10^6 bytes."""

    required: bool
    evidence: Evidence
    max: float


def threshold(settings: Limit) -> str:
    """In words."""
    return f"at most {settings.max:g} MB"


def memory_mb(settings: Limit, context: VerifyContext) -> GateResult:
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
    settings: Limit,
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
        threshold=threshold(settings),
        observed=observed,
        reason=reason,
        measurements=measurements,
    )
