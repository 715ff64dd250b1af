"""The ladder of a bundle: the rungs that it carries, on the reference inputs of its kit."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends import engine
from kdcompile.backends.board import Board, facts_of
from kdcompile.backends.via import Place, open_place
from kdcompile.data.metric import Metric
from kdcompile.data.task import Task, find_task
from kdcompile.errors import KDError
from kdcompile.parity.ladder import Ladder, Rung
from kdcompile.parity.rungs import NO_ENGINE, Shipped, last_rung, onnx_rung, rounded_rung
from kdcompile.parity.sides import Side
from kdcompile.parity.tolerance import Tolerance, of_classes, of_numbers
from kdcompile.report import Report
from kdcompile.spec_deploy import Compile
from kdcompile.spec_gates import fraction

Floats = NDArray[np.float32]
UNUSED = "the bundle has an engine; name the place that runs it: --via PLACE"
IN_SPEC = "a bundle carries no PyTorch network; name the spec instead"
BEFORE = (
    Rung("pytorch", "the trained module", absent=IN_SPEC),
    Rung("exported", "torch.export's program", absent=IN_SPEC),
)


@contextmanager
def bundle_ladder(
    folder: Path,
    manifest: Mapping[str, Any],
    report: Report,
    by_runtime: bool,
    via: tuple[str, str] | None,
) -> Iterator[Ladder]:
    """The ladder of what a bundle carries, on the inputs of its kit.

    Args:
        folder: of the bundle, checked against its manifest.
        manifest: of the bundle.
        report: of the bundle.
        by_runtime: ONNX Runtime on a CPU is what runs it.
        via: where its engine runs and the worker's backend there; None for none.

    Raises:
        KDError: `parity-incomplete`, with what the bundle lacks; the place's.
    """
    inputs = kit_inputs(folder, manifest)
    about = json.loads((folder / "kit" / "kit.json").read_text(encoding="utf-8"))
    gates = json.loads((folder / "kit" / "gates.json").read_text(encoding="utf-8"))
    task = find_task(str(manifest["task"]))
    metric = task.selection_metric(gates["accuracy"]["metric"])
    fp32 = onnx_rung(folder / "kit" / "student_fp32.onnx")
    files = {p: folder / "kit" / f"student_{p}.onnx" for p in about["precisions"]}
    name = manifest.get("engine")
    shipped = Shipped(
        precision=str(manifest["precision"]),
        model=folder / str(manifest["model"]),
        engine=None if name is None else folder / str(name),
        by_runtime=by_runtime,
    )
    assert fp32.side is not None, "the fp32 file runs here"
    share = fraction(gates["accuracy"]["margin"])
    tolerance = _bundle_tolerance(folder, report, task, metric, share, fp32.side, inputs)
    absent = NO_ENGINE if name is None else UNUSED
    with _place(via) as place:
        rounded = rounded_rung(shipped, files, manifest["files"]["kit/student_fp32.onnx"]["sha256"])
        last = last_rung(shipped, place, _settings(shipped), about["profile"], absent)
        yield Ladder(
            rungs=[*BEFORE, fp32, rounded, last],
            images=inputs,
            task=task,
            metric=metric,
            true=None,
            tolerance=tolerance,
            min_sqnr_db=float(gates["parity"]["min_sqnr_db"]),
            source=f"the {len(inputs)} reference inputs of the bundle's kit",
        )


@contextmanager
def _place(via: tuple[str, str] | None) -> Iterator[tuple[Place, Board] | None]:
    """The place that runs the engine, and its facts."""
    if via is None:
        yield None
        return
    with open_place(*via) as opened:
        yield opened, Board(*via, opened.label, facts_of(opened.about), "host")


def _settings(shipped: Shipped) -> Compile:
    """How an engine is built to look inside: as the record says, as far as it does."""
    if shipped.engine is None:
        return Compile()
    return Compile(dla=engine.record_of(shipped.engine).get("dla"))


def kit_inputs(folder: Path, manifest: Mapping[str, Any]) -> list[Floats]:
    """The reference inputs of a bundle's kit.

    Raises:
        KDError: `parity-incomplete`.
    """
    needed = {
        "kit/student_fp32.onnx": "the fp32 network",
        "kit/reference.npz": "reference inputs",
        "kit/gates.json": "the gates",
        "kit/kit.json": "the kit's record",
    }
    lacks = [f"{what} ({name})" for name, what in needed.items() if name not in manifest["files"]]
    if lacks:
        raise incomplete(folder, lacks)
    with np.load(folder / "kit" / "reference.npz", allow_pickle=False) as arrays:
        return [arrays[name] for name in arrays.files if name.startswith("input_")]


def incomplete(folder: Path, lacks: Sequence[str]) -> KDError:
    """The refusal to judge a bundle that does not carry what that takes."""
    return KDError(
        "parity-incomplete",
        f"the bundle carries no {', no '.join(part.removeprefix('the ') for part in lacks)}",
        where=str(folder),
        fix="name the spec that it was built from in its place, with the same --target: "
        "kdcompile verify --parity SPEC, kdcompile bisect SPEC",
    )


def _bundle_tolerance(
    folder: Path,
    report: Report,
    task: Task,
    metric: Metric,
    share: float,
    fp32: Side,
    inputs: Sequence[Floats],
) -> Tolerance:
    """From the predictions that the report lists; for classes from the reference inputs' logits."""
    if metric.points:
        return of_classes(metric, share, [fp32.run(image)[fp32.output] for image in inputs])
    rows = report.details.get("predictions") or []
    if not rows or "student_fp32" not in rows[0]:
        raise incomplete(folder, ["predictions of the test photos (report.json)"])
    predicted, true = (np.array([row[k] for row in rows]) for k in ("student_fp32", "true"))
    return of_numbers(task, metric, share, predicted, true)
