"""Gate `parity`: the deployed network computes what the trained one computes."""

from kdcompile.config.gates import GateSpec
from kdcompile.core.report import GateResult
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import gate
from kdcompile.tasks.task import Task


class ParityGate(GateSpec):
    """Deployed network against the trained one on the same images."""

    board_limit = "sqnr_db", "min_sqnr_db"
    min_sqnr_db: float = 20.0


def _threshold(settings: ParityGate, task: Task) -> str:
    return f"SQNR at least {settings.min_sqnr_db:g} dB"


@gate(
    "parity",
    ParityGate,
    threshold=_threshold,
    needs=("outputs",),
    kind="parity",
    rank=1,
    always=True,
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
        threshold=_threshold(settings, context.task),
        observed=f"{found.sqnr_db:.1f} dB, largest relative error {found.max_rel_error:.2g}",
        reason=f"{found.mode}, {found.n} images",
        measurements=(
            context.measurement("sqnr", found.sqnr_db, "dB", n=found.n, mode=found.mode),
            context.measurement(
                "max relative error", found.max_rel_error, "1", n=found.n, mode=found.mode
            ),
        ),
    )
