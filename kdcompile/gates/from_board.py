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
from kdcompile.gates.board_choice import DEVICE, asked, chosen_at_home
from kdcompile.gates.board_context import (
    board_context,
    mode_text,
    predictions_of,
    task_of_report,
)
from kdcompile.gates.board_outputs import BoardRows, Home, board_rows
from kdcompile.gates.board_record import (
    BoardRecord,
    Candidate,
    FrameRecord,
    NoUsage,
    Times,
    Usage,
    read_record,
)
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.frame import frame_numbers
from kdcompile.gates.registry import Need, find_gate
from kdcompile.gates.resources import resource_numbers
from kdcompile.gates.speedup import target_speed
from kdcompile.gates.summary import measurements
from kdcompile.remote.archive import NAME
from kdcompile.remote.same_board import differences
from kdcompile.stats.latency_interval import median_interval

NO_USAGE = (
    "device.json has no readings of it: run the kit's build_engine.py again, of a bundle that this "
    "kdcompile built"
)
NO_FRAME = (
    "device.json has no whole frame: run the kit's build_engine.py again, with --images IMAGE... "
    "and Pillow on the board"
)
OTHER = (
    "the board took it of {} and ships {} by the outputs: run build_engine.py --precision {} "
    "there, and merge that run"
)
NO_OUTPUTS = (
    "the board's outputs are evaluated by the test pack: kdcompile bundle --merge device.json "
    "--test-pack PACK, with out/outputs_*.npz beside device.json"
)
NO_TEST = (
    "the board ran without the test images: kdcompile bundle --test-pack FOLDER, then on the "
    "board build_engine.py --test FOLDER"
)


def judge_board(
    report: Report,
    kit: Mapping[str, Any],
    gates: Mapping[str, Any],
    value: Any,
    where: str,
    home: Home | None = None,
) -> tuple[Report, Mapping[str, str]]:
    """The report with the board's verdicts in place of the pending ones.

    Args:
        report: of the build, before any board.
        kit: `kit.json` of the bundle.
        gates: `gates.json` of the bundle.
        value: `device.json`, parsed; nothing of it is trusted.
        where: its name, for errors.
        home: of a task of records, what judges the outputs that the board kept.

    Returns:
        The report, and the SHA-256 by file name of the engine that ships; empty where none does.

    Raises:
        KDError: `device-invalid`, `device-version`; `merge-mismatch`, it is of another machine,
            worker, or set of photos; `test-pack-unneeded`; those of `board_rows`.
    """
    record = read_record(value, where)
    _refuse_others(report, kit, record, where)
    settings = Gates.model_validate(gates)
    rows = None if home is None else _judged_rows(report, kit, record, home)
    if rows is not None:
        record = chosen_at_home(report, settings, record, rows)
    candidate = record.winner or _closest(record.candidates)
    context = None if candidate is None else board_context(report, record, candidate, rows)
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


def _judged_rows(
    report: Report, kit: Mapping[str, Any], record: BoardRecord, home: Home
) -> BoardRows:
    """The rows of what the board kept.

    Raises:
        KDError: `test-pack-unneeded`; those of `board_rows`.
    """
    facts = report.details["task"]
    if not facts.get("of_records"):
        raise KDError(
            "test-pack-unneeded",
            f"a board's record of {facts['kind']} has all that the gates need",
            where="--test-pack",
            fix="leave --test-pack out of --merge",
        )
    return board_rows(home, kit, record, task_of_report(report).kind)


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


def _digest(report: Report) -> str:
    """As the kit's `pack.py` has it."""
    rows = predictions_of(report)
    numbers = ([float(row[key]) for row in rows] for key in ("true", "teacher"))
    told: list[Any] = [[str(row["name"]) for row in rows], *numbers]
    if task_of_report(report).takes_rows:
        told.append(report.details["data"]["test"]["photos_sha256"])
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _closest(candidates: Sequence[Candidate]) -> Candidate | None:
    """Where the board ships nothing, the engine that it came nearest with."""
    built = [c for c in candidates if None not in (c.engine, c.build, c.sqnr_db, c.max_rel_error)]
    return max(built, key=lambda c: c.sqnr_db or 0.0, default=None)


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
            found.append(asked(name, settings, context))
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
    known = len(context.outcomes.student) == len(context.outcomes.names)
    if "predictions" in needs and context.task.records and context.outcomes.teacher.ndim == 1:
        return replace(old, reason=NO_OUTPUTS)
    if "usage" in needs and context.resources is None:
        return replace(old, reason=_untaken(record.usage, context.precision, NO_USAGE))
    if "frame" in needs and context.frame is None:
        return replace(old, reason=_untaken(record.frame, context.precision, NO_FRAME))
    if "predictions" in needs and not known:
        return replace(old, verdict="failed", observed="no number",
                       reason=f"the {context.precision} engine did not give a number for each of "
                       f"{len(context.outcomes.names)} images")  # fmt: skip
    if "latency" in needs and not len(context.latency.times.a):
        teacher = record.teachers.get(teacher_precision(context.precision))  # type: ignore[call-overload]
        reason = teacher.why if teacher is not None and teacher.why else "the teacher was not timed"
        return replace(old, reason=f"on the board: {reason}")
    return asked(name, settings, context)


def _untaken(taken: Usage | NoUsage | FrameRecord | None, precision: str, nothing: str) -> str:
    """Why there is none of something: the board took it of another engine, or did not at all."""
    other = getattr(taken, "precision", None)
    return nothing if other is None else OTHER.format(other, precision, precision)


def _needs(name: str) -> tuple[Need, ...]:
    """What a gate takes of the measurements; of one that is not installed here nothing is known."""
    return find_gate(name).needs if name in plugins.names("gates") else ()


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
        precision=precision, mode=mode_text(record, mode),
    )  # fmt: skip
