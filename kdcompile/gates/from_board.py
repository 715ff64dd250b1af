"""Decide the pending gates of a report from the raw numbers that a board sent home.

The same functions decide as in `verify`: a board's own verdicts are not read. Photos, annotated
values and the teacher's predictions are the report's; the board gives what its engine predicted.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from kdcompile.backends.candidate_runner import teacher_precision
from kdcompile.config.gates import Gates
from kdcompile.core import plugins
from kdcompile.core.errors import KDError
from kdcompile.core.report import GateResult, Measurement, Report, overall
from kdcompile.gates.board_record import BoardRecord, Candidate, Times, read_record
from kdcompile.gates.context import (
    MODES,
    Earlier,
    Latency,
    Origin,
    Outcomes,
    Parity,
    VerifyContext,
)
from kdcompile.gates.frame import frame_numbers
from kdcompile.gates.frame import of_board as frame_of_board
from kdcompile.gates.registry import Need, find_gate
from kdcompile.gates.resources import of_board, resource_numbers
from kdcompile.gates.speedup import target_speed
from kdcompile.gates.summary import measurements
from kdcompile.remote.archive import NAME
from kdcompile.remote.same_board import differences
from kdcompile.stats.latency_interval import PairedTimes, median_interval
from kdcompile.targets import load
from kdcompile.tasks.reported import reported_task
from kdcompile.tasks.task import Task

DEVICE = "@device"
NO_USAGE = (
    "device.json has no readings of it: run the kit's build_engine.py again, of a bundle that this "
    "kdcompile built"
)
NO_FRAME = (
    "device.json has no whole frame: run the kit's build_engine.py again, with --images IMAGE... "
    "and Pillow on the board"
)
NO_TEST = (
    "the board ran without the test images: kdcompile bundle --test-pack FOLDER, then on the "
    "board build_engine.py --test FOLDER"
)


def judge_board(
    report: Report, kit: Mapping[str, Any], gates: Mapping[str, Any], value: Any, where: str
) -> tuple[Report, Mapping[str, str]]:
    """The report with the board's verdicts in place of the pending ones.

    Args:
        report: of the build, before any board.
        kit: `kit.json` of the bundle.
        gates: `gates.json` of the bundle.
        value: `device.json`, parsed; nothing of it is trusted.
        where: its name, for errors.

    Returns:
        The report, and the SHA-256 by file name of the engine that ships; empty where none does.

    Raises:
        KDError: `device-invalid`, `device-version`; `merge-mismatch`, it is of another machine,
            worker, or set of photos.
    """
    record = read_record(value, where)
    _refuse_others(report, kit, record, where)
    candidate = record.winner or _closest(record.candidates)
    settings = Gates.model_validate(gates)
    context = None if candidate is None else _context(report, record, candidate)
    found = _verdicts(report.gates, settings, record, context)
    if record.winner is None:
        found = _nothing_ships(found, record.why)
    verdict, code = overall(found)
    numbers = () if context is None else _numbers(context, record)
    merged = replace(
        report,
        verdict=verdict,
        exit_code=code,
        gates=tuple(found),
        measurements=(*report.measurements, *numbers),
        environment={**report.environment, "device": record.told()},
        details={**report.details, **_speed(report, context)},
    )
    winner = record.winner
    if winner is None or winner.build is None or winner.engine is None:
        return merged, {}
    return merged, {winner.engine: winner.build.sha256}


def _refuse_others(report: Report, kit: Mapping[str, Any], record: BoardRecord, where: str) -> None:
    if not any(gate.verdict == "pending" for gate in report.gates):
        raise KDError(
            "merge-mismatch",
            "no gate of this bundle waits for a board: the device itself decided them all",
            where=where,
            fix="keep the bundle as it is, or build it without --via and merge into that one",
        )
    wrong = []
    agent = NAME if NAME in kit["files"] else "worker.py"  # of a bundle before there was the file
    if record.worker != kit["files"].get(agent):
        wrong.append(f"{agent} there is not the kit's")
    if record.shape != list(kit["profile"][1]):
        wrong.append(f"it timed {record.shape}, the typical shape is {kit['profile'][1]}")
    wrong += differences(kit["target"], record.environment.model_dump())
    if record.test is not None and record.test.digest != _digest(report):
        wrong.append("the test pack is of other images or another teacher than the report")
    if wrong:
        raise KDError(
            "merge-mismatch",
            f"this is no evidence of {report.target}: {'; '.join(wrong)}",
            where=where,
            fix="run this bundle's own kit on the target, with a test pack of the same build",
        )


def _rows(report: Report) -> Sequence[Mapping[str, Any]]:
    return report.details.get("predictions") or ()


def _digest(report: Report) -> str:
    """As the kit's `pack.py` has it."""
    rows = _rows(report)
    numbers = ([float(row[key]) for row in rows] for key in ("true", "teacher"))
    told: list[Any] = [[str(row["name"]) for row in rows], *numbers]
    if _task(report).takes_rows:
        told.append(report.details["data"]["test"]["photos_sha256"])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _task(report: Report) -> Task:
    return reported_task(report.details["task"])


def _closest(candidates: Sequence[Candidate]) -> Candidate | None:
    """Where the board ships nothing, the engine that it came nearest with."""
    built = [c for c in candidates if None not in (c.engine, c.build, c.sqnr_db, c.max_rel_error)]
    return max(built, key=lambda c: c.sqnr_db or 0.0, default=None)


def _context(report: Report, record: BoardRecord, candidate: Candidate) -> VerifyContext:
    """What the board measured of one engine, as the gates take it."""
    environment = record.environment
    machine = environment.module or environment.platform
    origin = Origin(machine, environment.backend, environment.backend_version, "device")
    rows, predicted = _rows(report), candidate.predictions
    student = np.array(predicted if predicted is not None else [], np.float64)
    true, teacher = (np.array([float(row[k]) for row in rows]) for k in ("true", "teacher"))
    available = report.details.get("test_photos") or len(rows)
    names = tuple(str(row["name"]) for row in rows)
    earlier = report.details.get("previous")
    previous = None if earlier is None else np.array([float(row["previous"]) for row in rows])
    classes = report.details["task"].get("classes")
    known = np.array([bool(row.get("taught", True)) for row in rows])
    outcomes = Outcomes(
        names, true, teacher, student, student, student, int(available), previous,
        taught=None if known.all() else known,
    )  # fmt: skip
    assert candidate.sqnr_db is not None, "a judged candidate was compared"
    assert candidate.max_rel_error is not None, "a judged candidate was compared"
    assert candidate.build is not None, "a judged candidate was built"
    assert candidate.engine is not None, "a judged candidate was built"
    return VerifyContext(
        target=load(report.environment["target"]),
        precision=candidate.precision,
        task=_task(report),
        outcomes=outcomes,
        parity=Parity(
            candidate.sqnr_db,
            candidate.max_rel_error,
            record.references,
            f"{candidate.precision} engine against the fp32 reference outputs",
        ),
        latency=_latency(record, candidate.precision),
        predictions={},
        files={candidate.engine: candidate.build.bytes},
        seed=0 if record.test is None else record.test.seed,
        deployed=origin,
        host=Origin("", "", "", "host"),
        earlier=None if earlier is None else Earlier(**earlier),
        classes=None if classes is None else tuple(classes),
        resources=of_board(record.usage),
        frame=frame_of_board(record.frame, 0 if record.test is None else record.test.seed),
    )


def _latency(record: BoardRecord, precision: str) -> Latency:
    """Teacher and student in the judged mode; without samples where one was not timed."""
    times, beside = record.times(record.judged_mode), teacher_precision(precision)
    teacher = record.teachers[beside].engine if beside in record.teachers else None
    a, b = (times[name].blocks if name in times else [] for name in (teacher or "", precision))
    if not (a and b):
        a = b = []
    samples = PairedTimes(np.array(a, np.float64), np.array(b, np.float64), 1)
    mode = f"{_mode(record, record.judged_mode)}, teacher in {beside} and student in {precision}"
    return Latency(samples, precision, mode, beside)


def _mode(record: BoardRecord, mode: str) -> str:
    shape = "x".join(map(str, record.shape))
    power = f", {record.environment.power_mode}" if record.environment.power_mode else ""
    return f"{shape}, {MODES.get(mode, mode)}, alternating{power}"


def _verdicts(
    gates: Sequence[GateResult],
    settings: Gates,
    record: BoardRecord,
    context: VerifyContext | None,
) -> list[GateResult]:
    """The gates in their order, the pending ones decided; those of files again, of the engine.

    What this machine could not measure, or only predict, and the board did is the board's alone.
    """
    found: list[GateResult] = []
    for old in gates:
        name = old.name.removesuffix(DEVICE)
        if old.verdict == "pending":
            found.append(_decided(old, name, settings, record, context))
            continue
        found.append(old)
        if "files" in _needs(name) and context is not None:
            found.append(_asked(name, settings, context))
    decided = {gate.name for gate in found if gate.verdict != "pending"}
    weak = [g for g in found if g.verdict == "skipped" or g.evidence == "predicted"]
    return [g for g in found if g not in weak or g.name + DEVICE not in decided]


def _nothing_ships(gates: list[GateResult], why: str) -> list[GateResult]:
    """Without an engine a gate fails: that of its outputs, where the closest one failed none."""
    if any(g.verdict == "failed" for g in gates if g.name.endswith(DEVICE)):
        return gates
    reason = f"the board ships no engine: {why}"
    return [
        replace(g, verdict="failed", reason=reason)
        if g.name.endswith(DEVICE) and "outputs" in _needs(g.name.removesuffix(DEVICE))
        else g
        for g in gates
    ]


def _decided(
    old: GateResult,
    name: str,
    settings: Gates,
    record: BoardRecord,
    context: VerifyContext | None,
) -> GateResult:
    """A pending gate's verdict, or the same gate with the reason why it is still pending."""
    if context is None:
        told = "; ".join(f"{c.precision}: {c.why}" for c in record.candidates)
        reason = f"no engine was built on the board: {told}"
        return replace(old, verdict="failed", observed="no engine", reason=reason)
    needs = _needs(name)
    if {"predictions", "latency"} & set(needs) and record.test is None:
        return replace(old, reason=NO_TEST)
    if "usage" in needs and context.resources is None:
        return replace(old, reason=NO_USAGE)
    if "frame" in needs and context.frame is None:
        return replace(old, reason=NO_FRAME)
    if "predictions" in needs and len(context.outcomes.student) != len(context.outcomes.names):
        return replace(old, verdict="failed", observed="no number",
                       reason=f"the {context.precision} engine did not give a number for each of "
                       f"{len(context.outcomes.names)} images")  # fmt: skip
    if "latency" in needs and not len(context.latency.times.a):
        teacher = record.teachers.get(teacher_precision(context.precision))  # type: ignore[call-overload]
        reason = teacher.why if teacher is not None and teacher.why else "the teacher was not timed"
        return replace(old, reason=f"on the board: {reason}")
    return _asked(name, settings, context)


def _needs(name: str) -> tuple[Need, ...]:
    """What a gate takes of the measurements; of one that is not installed here nothing is known."""
    return find_gate(name).needs if name in plugins.names("gates") else ()


def _asked(name: str, settings: Gates, context: VerifyContext) -> GateResult:
    own = getattr(settings, name).model_copy(update={"evidence": "device"})
    return replace(find_gate(name)(own, context), name=name + DEVICE)


def _numbers(context: VerifyContext, record: BoardRecord) -> tuple[Measurement, ...]:
    """Errors, speed-up, energy, memory, the frame, and every latency with a 95 % interval."""
    told: list[Measurement] = []
    whole = len(context.outcomes.student) == len(context.outcomes.names) > 0
    if record.test is not None and whole and len(context.latency.times.a):
        told = [
            m for m in measurements(context, {})
            if m.evidence == "device" and not m.name.endswith("latency")
        ]  # fmt: skip
    for mode in record.latency:
        for name, times in record.times(mode).items():
            told.append(_latency_of(context, record, mode, name, times))
    told += [*resource_numbers(context), *frame_numbers(context)]
    return tuple(dict.fromkeys(told))


def _speed(report: Report, context: VerifyContext | None) -> dict[str, Any]:
    """What the report's first table says of the speed, where the board timed both networks."""
    if context is None or not len(context.latency.times.a):
        return {}
    return {"target_speed": {**(report.details.get("target_speed") or {}), **target_speed(context)}}


def _latency_of(
    context: VerifyContext, record: BoardRecord, mode: str, name: str, times: Times
) -> Measurement:
    value, low, high = median_interval(np.array(times.blocks, np.float64), context.seed)
    who, _, precision = name.rpartition("_")
    return context.measurement(
        f"{who or 'student'} latency", value, "ms", low=low, high=high, n=times.n,
        precision=precision, mode=_mode(record, mode),
    )  # fmt: skip
