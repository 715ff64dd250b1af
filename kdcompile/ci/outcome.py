"""One gate's result in the form that every CI report is made of, and what makes CI red."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from kdcompile.core import plugins
from kdcompile.core.errors import EXIT_FIXABLE, EXIT_INCONCLUSIVE, EXIT_OK, KDError
from kdcompile.core.report import GateResult, Report, overall

if TYPE_CHECKING:
    from kdcompile.stats.comparison import Comparison, Ratio

Verdict = Literal["passed", "failed", "inconclusive", "skipped", "pending", "error"]
UNDECIDED = ("inconclusive", "skipped", "error")  # red where the gate is required, like failed


@dataclass(frozen=True)
class Outcome:
    """What a gate, a comparison or a failed command came to.

    Args:
        name: the same in every run, since CI systems follow a test by its name: no numbers in it.
        kind: `latency`, `accuracy`, `parity`, `size`, `energy`, `memory`, `integrity` or `gate`;
            of a command that ended by an error, the command.
        verdict: `error` where there is none, because something broke.
        required: decides the exit code; an optional gate never makes CI red.
        observed: what was measured, in words.
        threshold: what it was held against, in words.
        reason: why the verdict is this one; a sentence or more.
        seconds: that it took; 0 where nobody timed it.
        details: JSON values for `outcomes.json`. `ratios` (of a `Comparison`) and `measurements`
            (of a `GateResult`) are drawn as tables; `file` is where an annotation points.
    """

    name: str
    kind: str
    verdict: Verdict
    required: bool = True
    observed: str = ""
    threshold: str = ""
    reason: str = ""
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def red(self) -> bool:
        """Whether it makes CI red."""
        return self.required and (self.verdict == "failed" or self.verdict in UNDECIDED)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a number that JSON does not know becomes its name."""
        made: dict[str, Any] = plain(asdict(self))
        return made


def plain(value: Any) -> Any:
    """The value with `nan`, `inf` and `-inf` as strings: strict readers refuse JSON with them."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def overall_of(outcomes: Sequence[Outcome]) -> tuple[str, int]:
    """The verdict in words and the exit code, by the rules of `kdcompile.core.report.overall`.

    An error comes first: where something broke, nothing else is sure.
    """
    broken = [o for o in outcomes if o.required and o.verdict == "error"]
    if broken:
        code = int(broken[0].details.get("exit_code", EXIT_FIXABLE))
        return f"error: {', '.join(o.name for o in broken)}", code
    gates = [_gate(o) for o in outcomes]
    return overall(gates)


def _gate(outcome: Outcome) -> GateResult:
    verdict = "inconclusive" if outcome.verdict == "error" else outcome.verdict
    return GateResult(
        outcome.name, verdict, outcome.details.get("evidence", "host"), outcome.required,
        outcome.threshold, outcome.observed, outcome.reason,
    )  # fmt: skip


def outcomes_of_report(report: Report, *, require_device: bool = False) -> list[Outcome]:
    """One outcome a gate.

    Args:
        report: of a build.
        require_device: a gate that waits for the board counts as undecided (`--require device`).
    """
    return [_outcome(gate, require_device) for gate in report.gates]


def _outcome(gate: GateResult, require_device: bool) -> Outcome:
    verdict, required, reason = gate.verdict, gate.required, gate.reason
    if verdict == "pending" and require_device:
        waits = "it waits for the device, which --require device asks for"
        verdict, required, reason = "inconclusive", True, f"{waits}: {reason}" if reason else waits
    details = {"evidence": gate.evidence, "measurements": [asdict(m) for m in gate.measurements]}
    return Outcome(
        gate.name, kind_of(gate.name), verdict, required, gate.observed, gate.threshold, reason,
        details=details,
    )  # fmt: skip


def kind_of(name: str) -> str:
    """The kind of a gate, by its own name or that of its twin on the device; `gate` if unknown."""
    found = plugins.plugin("gates", name.removesuffix("@device"))
    return str(getattr(found.value, "kind", "gate")) if found is not None else "gate"


def outcome_of_comparison(
    comparison: "Comparison",
    name: str,
    *,
    seconds: float = 0.0,
    required: bool = True,
    notes: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> Outcome:
    """The outcome of a latency comparison: `regressed` fails, no decision is inconclusive.

    Args:
        comparison: the verdict.
        name: of the artifact.
        seconds: that measuring took.
        required: as `Outcome` has it.
        notes: sentences that a reader must know, put after the reason.
        details: JSON values beside those of the comparison.
    """
    code = comparison.exit_code
    verdict: Verdict = (
        "passed" if code == EXIT_OK
        else "inconclusive" if code == EXIT_INCONCLUSIVE
        else "failed"
    )  # fmt: skip
    middle = comparison.ratios[0]
    decision = "" if verdict == comparison.decision else f"{comparison.decision}: "
    return Outcome(
        name, "latency", verdict, required,
        observed=decision + change(middle),
        threshold=f"{middle.quantile} at most {middle.margin * 100:g} % slower",
        reason="\n".join((comparison.reason, *notes)), seconds=seconds,
        details=dict(details or {}) | comparison.to_json(),
    )  # fmt: skip


def change(ratio: "Ratio") -> str:
    """A ratio as a change of latency with its interval: `p50 +4.9 % (+4.1 % to +5.7 %)`."""
    numbers = (ratio.value, ratio.low, ratio.high)
    value, low, high = (f"{(number - 1) * 100:+.1f} %" for number in numbers)
    return f"{ratio.quantile} {value} ({low} to {high})"


def outcome_of_error(error: BaseException, name: str, command: str) -> Outcome:
    """The outcome of a command that ended without a verdict.

    Args:
        error: a `KDError`, or whatever else stopped it.
        name: of what could not be judged.
        command: that ended so, such as `bench`.
    """
    if isinstance(error, KDError):
        details: dict[str, Any] = {"code": error.code, "where": error.where, "fix": error.fix}
        return Outcome(
            name, command, "error", observed=error.message, reason=str(error),
            details=details | {"exit_code": error.exit_code},
        )  # fmt: skip
    usage = getattr(error, "format_message", None)  # of click, whose exit code is 2
    text = usage() if usage else f"{type(error).__name__}: {error}"
    details = {"exit_code": int(getattr(error, "exit_code", EXIT_FIXABLE))}
    return Outcome(name, command, "error", observed=text, reason=text, details=details)


def counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    """How many of each verdict there are, of those that occur."""
    found: dict[str, int] = {}
    for outcome in outcomes:
        found[outcome.verdict] = found.get(outcome.verdict, 0) + 1
    return found
