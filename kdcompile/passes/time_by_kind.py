"""A network's predicted time by kind of layer, and by what limits each kernel."""

from collections.abc import Iterable, Mapping
from typing import Any

from kdcompile.backends.candidate_runner import teacher_precision


def time_by_kind(estimate: Mapping[str, Any], precision: str) -> dict[str, Any] | None:
    """The latency model's milliseconds of teacher and student, for the report.

    Args:
        estimate: as `estimate.json`, with the price of the file that ships.
        precision: of the student.

    Returns:
        `evidence`, and by who a row for each kind of kernel and bound: `kind`, `bound`, `ms`,
        `kernels`; None where the model has no estimate of both, as on a CPU that is measured.
    """
    teachers, student = estimate["teacher"], estimate["student"].get(precision)
    beside = teacher_precision(precision)
    teacher = teachers.get(beside if beside in teachers else "fp32")
    if not isinstance(student, Mapping) or teacher is None:
        return None
    # an estimate that was measured on this machine has no parts
    rows = {"teacher": _rows(teacher.get("parts", ())), "student": _rows(student.get("parts", ()))}
    return {"evidence": "predicted", **rows} if all(rows.values()) else None


def _rows(parts: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for part in parts:
        key = part["kind"], part["bound"]
        row = found.setdefault(key, {"kind": key[0], "bound": key[1], "ms": 0.0, "kernels": 0})
        row["ms"] += part["ms"]
        row["kernels"] += 1
    return sorted(found.values(), key=lambda row: -float(row["ms"]))
