"""Does the deployed network compute what the trained one computes?"""

from kdcompile.config.gates import ParityGate
from kdcompile.core.report import GateResult
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import gate


def _threshold(settings: ParityGate) -> str:
    return f"SQNR at least {settings.min_sqnr_db:g} dB"


@gate(
    "parity",
    threshold=_threshold,
    on_board="build_engine.py of the kit compares its engine with the reference outputs",
)
def parity(settings: ParityGate, context: VerifyContext) -> GateResult:
    """Passed when the signal-to-difference ratio reaches the spec's, else failed."""
    found = context.parity
    enough = found.sqnr_db >= settings.min_sqnr_db
    return GateResult(
        name="parity",
        verdict="passed" if enough else "failed",
        evidence=context.evidence,
        required=settings.required,
        threshold=_threshold(settings),
        observed=f"{found.sqnr_db:.1f} dB, largest relative error {found.max_rel_error:.2g}",
        reason=f"{found.mode}, {found.n} images",
        measurements=(
            context.measurement("sqnr", found.sqnr_db, "dB", n=found.n, mode=found.mode),
            context.measurement(
                "max relative error", found.max_rel_error, "1", n=found.n, mode=found.mode
            ),
        ),
    )
