"""The context of the gates from what a board measured of one engine."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kdcompile.backends.candidate_runner import teacher_precision
from kdcompile.core.report import Report
from kdcompile.gates.board_outputs import BoardRows
from kdcompile.gates.board_record import BoardRecord, Candidate, Usage
from kdcompile.gates.context import (
    MODES,
    Earlier,
    Latency,
    Origin,
    Outcomes,
    Parity,
    VerifyContext,
)
from kdcompile.gates.frame import of_board as frame_of_board
from kdcompile.gates.resources import of_board
from kdcompile.stats.latency_interval import PairedTimes
from kdcompile.targets import load
from kdcompile.tasks.reported import reported_task
from kdcompile.tasks.task import Task


def predictions_of(report: Report) -> Sequence[Mapping[str, Any]]:
    """The rows of the test images."""
    return report.details.get("predictions") or ()


def task_of_report(report: Report) -> Task:
    """The task that a report is of."""
    return reported_task(report.details["task"])


def board_context(
    report: Report, record: BoardRecord, candidate: Candidate, given: BoardRows | None
) -> VerifyContext:
    """What the board measured of one engine, as the gates take it.

    Args:
        report: of the build.
        record: of the board.
        candidate: the engine's, which was built and compared.
        given: of a task of records, the rows of what it gave where they are known.
    """
    environment = record.environment
    machine = environment.module or environment.platform
    origin = Origin(machine, environment.backend, environment.backend_version, "device")
    rows, task = predictions_of(report), task_of_report(report)
    true, teacher = (np.array([float(row[k]) for row in rows]) for k in ("true", "teacher"))
    available = report.details.get("test_photos") or len(rows)
    names = tuple(str(row["name"]) for row in rows)
    earlier = report.details.get("previous")
    previous = None if earlier is None else np.array([float(row["previous"]) for row in rows])
    student = np.array([] if task.records else candidate.predictions or [], np.float64)
    if given is not None:
        student = given.students.get(candidate.precision, student)
        teacher, previous = given.teacher, given.previous
    classes = report.details["task"].get("classes")
    known = np.array([bool(row.get("taught", True)) for row in rows])
    outcomes = Outcomes(
        names, true, teacher, student, student, student, int(available), previous,
        taught=None if known.all() else known,
    )  # fmt: skip
    usage, frame = record.usage, record.frame
    if isinstance(usage, Usage) and usage.precision != candidate.precision:
        usage = None
    if frame is not None and frame.precision != candidate.precision:
        frame = None
    assert candidate.sqnr_db is not None, "a judged candidate was compared"
    assert candidate.max_rel_error is not None, "a judged candidate was compared"
    assert candidate.build is not None, "a judged candidate was built"
    assert candidate.engine is not None, "a judged candidate was built"
    return VerifyContext(
        target=load(report.environment["target"]),
        precision=candidate.precision,
        task=task,
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
        resources=of_board(usage),
        frame=frame_of_board(frame, 0 if record.test is None else record.test.seed),
    )


def _latency(record: BoardRecord, precision: str) -> Latency:
    """Teacher and student in the judged mode; without samples where one was not timed."""
    times, beside = record.times(record.judged_mode), teacher_precision(precision)
    teacher = record.teachers[beside].engine if beside in record.teachers else None
    a, b = (times[name].blocks if name in times else [] for name in (teacher or "", precision))
    if not (a and b):
        a = b = []
    samples = PairedTimes(np.array(a, np.float64), np.array(b, np.float64), 1)
    mode = (
        f"{mode_text(record, record.judged_mode)}, teacher in {beside} and student in {precision}"
    )
    return Latency(samples, precision, mode, beside)


def mode_text(record: BoardRecord, mode: str) -> str:
    """How the board timed in a mode: shape, what a call covers, power mode."""
    shape = "x".join(map(str, record.shape))
    power = f", {record.environment.power_mode}" if record.environment.power_mode else ""
    return f"{shape}, {MODES.get(mode, mode)}, alternating{power}"
