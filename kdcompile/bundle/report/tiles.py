"""Tiles of the report's first screen, and what the report leaves open."""

import math
import shlex
from dataclasses import dataclass

from kdcompile.bundle import facts, headline
from kdcompile.core.report import GateResult, Measurement, Report

RESOURCES = (  # the first that was measured is shown
    ("energy of an inference", "Energy of an inference", "energy_mj"),
    ("peak memory", "Peak memory", "memory_mb"),
)
UNSURE = ("inconclusive", "skipped")


@dataclass(frozen=True)
class Tile:
    """One quantity of teacher and student, as texts; what is not known is empty.

    title: what it is; teacher, student: the values; change: the student beside the teacher, with
    its interval; evidence: a key of `facts.EVIDENCE`; note: what the values rest on; gate: the
    gate's threshold; verdict: the gate's, with the mark of an optional one.
    """

    title: str
    teacher: str
    student: str
    change: str = ""
    evidence: str = ""
    note: str = ""
    gate: str = ""
    verdict: str = ""


def tiles(report: Report) -> list[Tile]:
    """Accuracy, latency on the target, size, and energy, memory or multiply-adds."""
    found = (_accuracy(report), _latency(report), _size(report), _resource(report))
    return [tile for tile in found if tile is not None]


def _accuracy(report: Report) -> Tile | None:
    judged = headline.judged(report)
    if judged is None:
        return None
    name, teacher, student = judged
    gate = headline.gate_of(report, "accuracy")
    told = headline.accuracy_texts(name, teacher, student)
    change, spread = told[-1], next(iter(gate.measurements), None) if gate else None
    if spread is not None and spread.low is not None and spread.high is not None:
        change = f"{change}; " if change else ""
        change += f"{spread.name} {_spread(spread.value, spread.low, spread.high, spread.name)}"
    label = headline.LABELS.get(name, name.upper())
    return Tile(
        label if label != label.lower() else f"{label[0].upper()}{label[1:]}",
        *told[:2], change, student.evidence,
        _interval(student), *headline.verdict_of(report, "accuracy"),
    )  # fmt: skip


def _spread(value: float, low: float, high: float, name: str) -> str:
    """A difference and its bounds, all to the third digit of the largest."""
    scale, unit = (100.0, " points") if facts.is_rate(name) else (1.0, "")
    largest = scale * max(abs(value), abs(low), abs(high))
    places = 2 if not math.isfinite(largest) or not largest else 2 - math.floor(math.log10(largest))
    texts = [f"{round(scale * v, places) + 0.0:.{max(places, 0)}f}" for v in (value, low, high)]
    return f"{texts[0]}{unit} (95 %: {texts[1]} to {texts[2]})"


def _interval(student: Measurement) -> str:
    """How many images the student was judged on, and its own interval."""
    images = "" if student.n is None else f"{facts.number(student.n)} test images"
    if student.low is None or student.high is None:
        return images
    text = facts.percent if facts.is_rate(student.name) else facts.number
    own = f"student {text(student.low)} to {text(student.high)} (95 %)"
    return f"{images}; {own}" if images else own


def _latency(report: Report) -> Tile | None:
    speed = report.details.get("target_speed") or {}
    if not speed:
        return None
    told = headline.verdict_of(report, "speedup")
    title = "Target latency"
    if speed.get("ratio") is None:
        return Tile(title, "no estimate", "no estimate", "", "", "", *told)
    band = "band" if speed["evidence"] == "predicted" else "95 %:"
    change = f"{speed['ratio']:.2f}x faster ({band} {speed['low']:.2f} to {speed['high']:.2f})"
    note = f"{speed['teacher_precision']} → {speed['precision']}"
    if speed["evidence"] == "predicted" and not speed["validated"]:
        note += "; the model is not validated for such a network"
    teacher, student = (facts.number(float(speed[f"{who}_ms"])) for who in ("teacher", "student"))
    return Tile(title, f"{teacher} ms", f"{student} ms", change, speed["evidence"], note, *told)


def _size(report: Report) -> Tile | None:
    row = headline.cost(report, "size")
    if row is None:
        return None
    params = headline.cost(report, "parameters")
    note = "" if params is None else f"parameters {params[0]} → {params[1]}"
    return Tile("Size as ONNX", *row, "host", note, *headline.verdict_of(report, "size_mb"))


def _resource(report: Report) -> Tile | None:
    """What the device measured of the student; else the multiply-adds, which are always known."""
    for name, title, gate in RESOURCES:
        found = headline.last(report, name, None)
        if found is not None:
            value = f"{facts.number(found.value)} {found.unit}"
            told = headline.verdict_of(report, gate)
            return Tile(title, "", value, "", found.evidence, found.mode, *told)
    row = headline.cost(report, "multiply-adds")
    note = f"energy and memory: {facts.UNKNOWN}"
    return None if row is None else Tile("Multiply-adds", *row, note=note)


@dataclass(frozen=True)
class Open:
    """What a report leaves open: a sentence, its gates, and the one command that settles them."""

    sentence: str
    gates: tuple[GateResult, ...]
    command: str = ""


def what_is_open(report: Report) -> Open:
    """Gates that failed or did not decide; else those that wait for the device.

    The command builds on the device itself, which measures and judges all that waits for it.
    """
    wrong = tuple(g for g in report.gates if g.required and g.verdict == "failed")
    unsure = tuple(g for g in report.gates if g.required and g.verdict in UNSURE)
    waits = tuple(g for g in report.gates if g.verdict == "pending")
    command = ""
    if waits:
        target = shlex.quote(report.target)
        command = f"kdcompile build --target {target} --via ssh://user@board"
    if wrong:
        return Open(f"{_gates(len(wrong))} failed: do not ship.", wrong, command)
    if unsure:
        return Open(f"{_gates(len(unsure))} could not decide.", unsure, command)
    if waits:
        verb = "waits" if len(waits) == 1 else "wait"
        return Open(f"{_gates(len(waits))} {verb} for the device.", waits, command)
    return Open("Nothing is open: every required gate is decided.", ())


def _gates(count: int) -> str:
    return f"{count} gate{'s'[: count > 1]}"
