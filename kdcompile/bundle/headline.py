"""The report's first table: teacher and student side by side, on the target, with thresholds."""

import re
from collections.abc import Mapping
from typing import Any

from kdcompile.bundle import facts
from kdcompile.core.report import GateResult, Measurement, Report
from kdcompile.tasks.generic import AGREEMENT

HEADS = ("quantity", "teacher", "student", "student / teacher", "threshold", "verdict")
SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))
MEGABYTE = 1e6
DEVICE = "@device"
ABSENT, PREDICTED = "", ", predicted"
LABELS = {  # of metrics whose name is no abbreviation
    "top1": "top-1 accuracy", "rel_error": "relative error", "disagreement": "disagreement",
    "score": "score", "set_score": "score of the set", "miou": "mIoU", "map": "mAP",
    "pixel_accuracy": "pixel accuracy", "map50": "mAP50",
}  # fmt: skip
RELATIVE = {metric.name for metric in AGREEMENT}  # whose change beside the teacher's 0 says nothing


def rows(report: Report) -> list[tuple[str, ...]]:
    """The main numbers as texts, in the order of `HEADS`; what is not known has no row.

    Latency and speed-up are the target's: measured there, or what its latency model predicts.
    """
    found = [*_latency(report), *_frame(report), *_accuracy(report), *_costs(report)]
    return [(*cells, *verdict_of(report, gate)) for *cells, gate in found]


def notes(report: Report) -> list[str]:
    """What the latencies rest on, and what this machine measured beside them."""
    speed = report.details.get("target_speed") or {}
    host, evidence = speed.get("host"), speed.get("evidence")
    lines = []
    if evidence == "predicted":
        if speed.get("ratio") is None:
            lines.append(f"Target latency: the model of {report.target} has no estimate.")
        else:
            state = "validated" if speed["validated"] else "not validated"
            lines.append(
                f"Target latency is predicted by the model of {report.target}, with its band; for "
                f"a network like this it is {state} by measurements."
            )
    elif evidence is not None:
        where = "the device" if evidence == "device" else "this machine, which is the target"
        lines.append(f"Target latency was measured on {where}.")
    if host is not None:
        lines.append(
            f"For information, the machine of the build: {_ms(host, 'teacher')} and "
            f"{_ms(host, 'student')} in {host['precision']}, {host['ratio']:.2f}x. "
            "It decides nothing of the target."
        )
    return lines


def _ms(speed: Mapping[str, Any], who: str) -> str:
    return f"{facts.number(float(speed[f'{who}_ms']))} ms"


def _latency(report: Report) -> list[tuple[str, str, str, str, str]]:
    speed = report.details.get("target_speed") or {}
    if not speed:
        return []
    if speed.get("ratio") is None:
        return [("target latency", "no estimate", "no estimate", ABSENT, "speedup")]
    ratio = f"{speed['ratio']:.2f}x faster ({speed['low']:.2f} to {speed['high']:.2f})"
    how = PREDICTED if speed["evidence"] == "predicted" else ""
    return [
        (f"target latency{how}", _ms(speed, "teacher"), _ms(speed, "student"), ratio, "speedup"),
        ("precision", speed["teacher_precision"], speed["precision"], ABSENT, ""),
    ]


def _frame(report: Report) -> list[tuple[str, str, str, str, str]]:
    """The whole frame, as measured; else the least that its predicted parts take."""
    whole = last(report, "whole frame", None)
    if whole is not None:
        return [("whole frame", ABSENT, f"{facts.number(whole.value)} ms", ABSENT, "frame_ms")]
    told = {gate.name: gate for gate in report.gates}.get("frame_ms")
    if told is None or told.evidence != "predicted":
        return []
    decided = "frame_ms" if told.verdict == "failed" else f"frame_ms{DEVICE}"
    return [("whole frame, predicted parts", ABSENT, told.observed, ABSENT, decided)]


def judged(report: Report) -> tuple[str, Measurement, Measurement] | None:
    """The metric that is judged, and its strongest measurements of teacher and student."""
    gate = gate_of(report, "accuracy")
    name = str(facts.task(report)["metric"])
    if gate is not None and gate.measurements:
        name = gate.measurements[0].name.split()[0]
    precision = (report.details.get("choice") or {}).get("precision")
    teacher = last(report, f"teacher {name}", None)
    student = last(report, f"student {name}", precision)
    return None if teacher is None or student is None else (name, teacher, student)


def accuracy_texts(name: str, teacher: Measurement, student: Measurement) -> tuple[str, str, str]:
    """A metric of teacher and student, and the student's change; empty where it says nothing."""
    rate = facts.is_rate(name)
    before, after = (
        facts.percent(m.value) if rate else facts.number(m.value) for m in (teacher, student)
    )
    change = ABSENT
    if rate:
        change = f"{100 * (student.value - teacher.value):+.2f} points"
    elif teacher.value > 0 and name not in RELATIVE:
        change = f"{student.value / teacher.value - 1:+.1%}"
    return before, after, change


def _accuracy(report: Report) -> list[tuple[str, str, str, str, str]]:
    found = judged(report)
    if found is None:
        return []
    label = LABELS.get(found[0], found[0].upper())
    return [(label, *accuracy_texts(*found), "accuracy")]


def last(report: Report, name: str, precision: str | None) -> Measurement | None:
    """The strongest evidence of a number: a device's comes after the host's."""
    found = [m for m in report.measurements if m.name == name]
    exact = [m for m in found if precision is None or m.precision == precision]
    known = [m for m in found if m.evidence == "device"] or exact
    return known[-1] if known else None


def _costs(report: Report) -> list[tuple[str, str, str, str, str]]:
    costs = report.details.get("costs")
    if not costs:
        return []
    teacher, student = costs["teacher"], costs["student"]
    shown = (
        ("size", megabytes, "bytes", "size_mb"),
        ("parameters", _scaled, "params", ""),
        ("multiply-adds", _scaled, "macs", ""),
    )
    return [
        (what, text(teacher[key]), text(student[key]), _smaller(teacher[key], student[key]), gate)
        for what, text, key, gate in shown
    ]


def megabytes(count: int) -> str:
    """Bytes as MB of 10^6, three significant digits."""
    return f"{count / MEGABYTE:.3g} MB"


def cost(report: Report, what: str) -> tuple[str, str, str] | None:
    """The texts of size, parameters or multiply-adds, for teacher, student and their ratio."""
    rows = {row[0]: row[1:4] for row in _costs(report)}
    return rows.get(what)


def _scaled(value: int) -> str:
    for scale, letter in SCALES:
        if value >= scale:
            return f"{value / scale:.3g} {letter}"
    return str(value)


def _smaller(teacher: int, student: int) -> str:
    if not student:
        return ABSENT
    ratio = teacher / student
    return f"{ratio:.3g}x smaller" if ratio >= 1 else f"{1 / ratio:.3g}x larger"


def verdict_of(report: Report, name: str) -> tuple[str, str]:
    """Threshold and verdict of a gate, the device's where it decided; empty where there is none."""
    gate = gate_of(report, name) if name else None
    if gate is None:
        return ABSENT, ABSENT
    verdict = gate.verdict + facts.optional(gate)
    return _short(gate.threshold), verdict


def gate_of(report: Report, name: str) -> GateResult | None:
    """A gate by its name: the device's once it has decided, else the host's."""
    gates = {gate.name: gate for gate in report.gates}
    device = gates.get(name + DEVICE)
    if device is not None and (device.verdict != "pending" or name not in gates):
        return device
    return gates.get(name)


def _short(threshold: str) -> str:
    """`at most +5%` of an accuracy gate's limits; others are short."""
    own = re.match(r"\w+ (at most [\d.]+), ", threshold)
    if own is not None:
        return own[1]
    limits = re.match(r"\w+ at most ([\d.]+(?:%| points)) (over|under) ", threshold)
    if limits is None:
        return threshold
    return f"at most {'+' if limits[2] == 'over' else '-'}{limits[1]}"
