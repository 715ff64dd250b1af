"""The variants of a network that parity compares, each read from what a build made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from kdcompile.backends import engine
from kdcompile.config.deploy import Compile
from kdcompile.config.step import Board
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.files import file_sha256
from kdcompile.data.preprocess import Frame
from kdcompile.debug.runners import EngineSide, OnnxSide, Side
from kdcompile.debug.tolerance import Tolerance, of_classes, of_errors, of_numbers
from kdcompile.debug.variants import EXACT, Ladder, Rung
from kdcompile.onnx_graph.fp16 import to_fp16
from kdcompile.remote.open import Place
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import Task

Floats = NDArray[np.float32]
DEPLOYED = "parity-deployed"  # the name that the shipped engine is loaded under
NOT_HERE = "ONNX Runtime's CPU has no bf16 kernels"


@dataclass(frozen=True)
class Shipped:
    """What a build or a bundle ships.

    Args:
        precision: that the engine computes in, else of the file.
        model: the ONNX file, which the engine was built from.
        engine: `model.engine`, where there is one.
        by_runtime: ONNX Runtime on this CPU is what runs it.
        rows: it runs on rows.
    """

    precision: str
    model: Path
    engine: Path | None
    by_runtime: bool
    rows: bool = False


def onnx_rung(path: Path, rows: bool) -> Rung:
    """The fp32 file, of a network that runs on rows or on images."""
    model = onnx.load(path)
    return Rung("onnx", "ONNX fp32", side=OnnxSide(model, rows=rows), model=model)


def rounded_rung(shipped: Shipped, files: Mapping[str, Path], fp32_sha256: str) -> Rung:
    """The file of the precision that ships.

    Args:
        shipped: by the build.
        files: of each precision, for where a flag rounds the fp32 file.
        fp32_sha256: of the fp32 file.
    """
    precision, path = shipped.precision, shipped.model
    if precision == EXACT:
        return Rung("rounded", "nothing", absent="the build ships fp32, which rounds nothing")
    if precision == "bf16":
        return Rung(precision, "ONNX bf16", precision, absent=NOT_HERE)
    by_flag = file_sha256(path) == fp32_sha256
    model = onnx.load(files.get(precision, path) if by_flag else path)
    if by_flag and precision == "fp16" and precision not in files:
        model = to_fp16(model)  # as `export` does
    form = "with casts" if precision == "fp16" else "with Q/DQ"
    side = OnnxSide(model, rows=shipped.rows)
    return Rung(precision, f"ONNX {precision} {form}", precision, side, model=model)


def last_rung(
    shipped: Shipped,
    place: tuple[Place, Board] | None,
    absent: str,
) -> Rung:
    """What runs: the engine at its place, or ONNX Runtime's own form of the file.

    Args:
        shipped: by the build.
        place: open, with its facts; None where there is none.
        absent: what to say where there is none.
    """
    model, kind = onnx.load(shipped.model), shipped.precision
    if shipped.by_runtime:
        what = "ONNX Runtime's optimised session"
        side: Side = OnnxSide(model, optimised=True, rows=shipped.rows)
        return Rung("engine", what, kind, side, model=model)
    if place is None or shipped.engine is None:
        return Rung("engine", "what runs", kind, absent=absent)
    (there, board), record = place, engine.record_of(shipped.engine)
    engine.take(there, shipped.engine, DEPLOYED)
    if kind == EXACT and board.facts["gpu"] is not None and record.get("tf32", True):
        kind = "tf32"  # what TensorRT computes fp32 in by default
    shapes = record.get("profile") or ()
    side = EngineSide(
        there, board, model, DEPLOYED, shipped.precision, settings_of(record), shapes, shipped.rows
    )
    what = f"{board.backend} {board.version} at {there.label}"
    return Rung("engine", what, kind, side, model=model, layers=record.get("layers"))


def settings_of(record: Mapping[str, Any]) -> Compile:
    """How an engine was built, by the record beside it."""
    names = Compile.model_fields.keys() - {"backend", "deterministic"}  # a record says how it went
    return Compile(**{name: record[name] for name in names if name in record})


def tolerance_of(
    task: Task,
    metric: Metric,
    share: float,
    outputs: Sequence[Floats],
    frames: Sequence[Frame],
    true: Sequence[float],
) -> Tolerance:
    """Of the noise of a rung, from what the reference gives for images whose truth is known."""
    if metric.points:
        return of_classes(metric, share, outputs)
    seen = [task.within(output, frame) for output, frame in zip(outputs, frames, strict=True)]
    predicted = np.concatenate([task.predictions(output) for output in seen])
    if task.takes_rows or task.records:
        return of_errors(metric, share, task.errors(predicted, true))
    return of_numbers(task, metric, share, predicted, np.array(true, np.float64))


def find_rung(ladder: Ladder, name: str) -> int:
    """The place of a rung by its name; `rounded` is the precision's.

    Raises:
        KDError: `rung-unknown`, or `rung-absent` where it or all before it are absent.
    """
    names = [rung.name for rung in ladder.rungs]
    place = 3 if name == "rounded" else names.index(name) if name in names else -1
    if place < 0:
        raise KDError(
            "rung-unknown",
            f"there is no rung {name!r}{nearest(name, names)}",
            where="--rung",
            fix=f"use one of {', '.join(names)}",
        )
    rung = ladder.rungs[place]
    earlier = [r for r in ladder.rungs[:place] if r.side is not None]
    if rung.side is None or not earlier:
        why = rung.absent or "it is the first one that is there, and has none to be held against"
        there = [r.name for r in ladder.rungs if r.side is not None][1:]
        raise KDError(
            "rung-absent",
            f"the rung {name} cannot be compared: {why}",
            where="--rung",
            fix=f"use one of {', '.join(there) or '(none is there)'}",
        )
    return place
