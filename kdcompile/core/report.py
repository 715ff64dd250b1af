"""Numbers with their evidence, gates with their verdicts, and the report that holds both."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from kdcompile.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK

Evidence = Literal["device", "host", "predicted"]
Verdict = Literal["passed", "failed", "inconclusive", "skipped", "pending"]

RANK: Mapping[str, int] = {"predicted": 0, "host": 1, "device": 2}


@dataclass(frozen=True)
class Measurement:
    """One number and how it was obtained.

    `low` and `high` bound it at 95 % where it has an interval; `n` counts samples.
    """

    name: str
    value: float
    unit: str
    evidence: Evidence
    low: float | None = None
    high: float | None = None
    n: int | None = None
    machine: str = ""
    backend: str = ""
    backend_version: str = ""
    precision: str = ""
    mode: str = ""


@dataclass(frozen=True)
class GateResult:
    """A measured number against a threshold.

    `evidence` is what the verdict rests on; a `pending` gate waits for the device.
    """

    name: str
    verdict: Verdict
    evidence: Evidence
    required: bool
    threshold: str
    observed: str
    reason: str
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class Report:
    """Everything that was measured of one build. `details` holds what the renderers draw."""

    name: str
    target: str
    verdict: str
    exit_code: int
    gates: tuple[GateResult, ...]
    measurements: tuple[Measurement, ...]
    environment: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Report":
        """The report that `to_json` wrote.

        Raises:
            ValueError: it is none.
        """
        from pydantic import TypeAdapter

        return TypeAdapter(cls).validate_json(json.dumps(data), strict=True)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table whose columns are as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def overall(gates: Iterable[GateResult], require_device: bool = False) -> tuple[str, int]:
    """The verdict in words and its exit code.

    A required gate that failed decides first, then one that is inconclusive or skipped. Gates
    that wait for the board leave the verdict at `passed on host`, and are exit 5 only when the
    device is required; a gate that passed by the latency model adds `and as predicted`.
    """
    gates = list(gates)
    required = [g for g in gates if g.required]
    pending = sum(g.verdict == "pending" for g in gates)
    for verdict, code in (("failed", EXIT_GATE), ("inconclusive", EXIT_INCONCLUSIVE)):
        names = [g.name for g in required if g.verdict == verdict]
        if names:
            return f"{verdict}: {', '.join(names)}", code
    skipped = [g.name for g in required if g.verdict == "skipped"]
    if skipped:
        return f"inconclusive: {', '.join(skipped)} skipped", EXIT_INCONCLUSIVE
    if not any(g.verdict == "passed" for g in gates):
        return "inconclusive: no gate was decided", EXIT_INCONCLUSIVE
    predicted = any(g.verdict == "passed" and g.evidence == "predicted" for g in gates)
    words = "passed on host" + " and as predicted" * predicted
    if pending:
        text = f"{words}, {pending} gate{'s'[: pending > 1]} pending on the board"
        return text, EXIT_INCONCLUSIVE if require_device else EXIT_OK
    return words if predicted else "passed", EXIT_OK
