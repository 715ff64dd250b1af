"""The choice of the precision that ships where a board's outputs are evaluated at home."""

from dataclasses import replace

import numpy as np

from kdcompile.config.gates import Gates
from kdcompile.core.report import GateResult, Report
from kdcompile.gates.board_context import board_context
from kdcompile.gates.board_outputs import BoardRows
from kdcompile.gates.board_record import BoardRecord
from kdcompile.gates.context import VerifyContext
from kdcompile.gates.registry import find_gate
from kdcompile.remote.agent.judging import pick

DEVICE = "@device"


def asked(name: str, settings: Gates, context: VerifyContext) -> GateResult:
    """The verdict of a gate on what a board measured."""
    own = getattr(settings, name).model_copy(update={"evidence": "device"})
    return replace(find_gate(name)(own, context), name=name + DEVICE)


def chosen_at_home(
    report: Report, settings: Gates, record: BoardRecord, rows: BoardRows
) -> BoardRecord:
    """The record with the precision that ships by the board's own rule, accuracy known."""
    ran, times = [], record.times(record.judged_mode)
    for c in record.candidates:
        if c.precision not in times or None in (c.engine, c.build, c.sqnr_db, c.max_rel_error):
            continue
        verdict = "failed"  # without outputs: one was no number
        if c.precision in rows.students:
            context = board_context(report, record, c, rows)
            verdict = asked("accuracy", settings, context).verdict
        agrees = (c.sqnr_db or 0.0) >= settings.parity.min_sqnr_db
        ms = float(np.median(times[c.precision].blocks))
        ran.append({"precision": c.precision, "parity": "passed" if agrees else "failed",
                    "verdict": verdict, "ms": ms})  # fmt: skip
    gates = {"accuracy": {"required": settings.accuracy.required}}
    found, why = pick(ran, gates) if ran else (None, record.why)
    chosen = None if found is None else found["precision"]
    return record.model_copy(update={"chosen": chosen, "why": why})
