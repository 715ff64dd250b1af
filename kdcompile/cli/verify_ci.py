"""What `verify` found of a bundle and of a parity ladder, as the outcomes of `--ci`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdcompile.ci.outcome import Outcome
    from kdcompile.core.report import Report
    from kdcompile.debug.reference_outputs import BundleCheck
    from kdcompile.debug.variants import Ladder, Step


def outcomes_of_bundle(
    report: "Report", found: "BundleCheck", *, require_device: bool
) -> "list[Outcome]":
    """The bundle's gates, its files and, where it has reference outputs, those of its network.

    Args:
        report: of the build.
        found: of `check_bundle`.
        require_device: a gate that waits for the board counts as undecided.
    """
    from kdcompile.ci.outcome import Outcome, outcomes_of_report

    signature = f"signature: {found.signature}"
    files = Outcome(
        "bundle files", "integrity", "passed", observed=found.files,
        threshold="every hash is the manifest's", reason=signature,
    )  # fmt: skip
    return [*outcomes_of_report(report, require_device=require_device), files, _outputs(found)]


def _outputs(found: "BundleCheck") -> "Outcome":
    from kdcompile.ci.outcome import Outcome

    name, numbers = "bundle outputs", found.parity
    if isinstance(numbers, str):
        return Outcome(name, "parity", "skipped", required=False, reason=numbers)
    least, sqnr = numbers["min_sqnr_db"], numbers["pooled_sqnr_db"]
    return Outcome(
        name, "parity", "failed" if sqnr < least else "passed",
        observed=f"{sqnr:.1f} dB over {numbers['n']} inputs", threshold=f"at least {least:g} dB",
        reason=found.engine or "its ONNX file, run here", details={"parity": numbers},
    )  # fmt: skip


def outcomes_of_ladder(ladder: "Ladder", steps: "Sequence[Step]") -> "list[Outcome]":
    """One outcome a rung that is held against another; those that are absent are skipped."""
    return [_rung(ladder, step) for step in steps if step.verdict != "reference"]


def _rung(ladder: "Ladder", step: "Step") -> "Outcome":
    from kdcompile.ci.outcome import Outcome

    details = step.to_json()
    if step.verdict not in ("passed", "failed"):
        return Outcome(
            step.name, "parity", "skipped", required=False, reason=step.reason, details=details
        )
    return Outcome(
        step.name, "parity", step.verdict,
        observed=f"{step.sqnr_db:.1f} dB, predictions move by {step.noise:.2g}",
        threshold=f"as {step.against}, within {ladder.tolerance.noise:.2g} of its predictions",
        reason=step.reason, details=details,
    )  # fmt: skip
