"""The ladder of a bundle: the rungs that it carries, on the reference inputs beside them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends.parity_inputs import incomplete, read_carried, source_of
from kdcompile.config.board import Board
from kdcompile.config.gates import fraction
from kdcompile.core.files import file_sha256
from kdcompile.core.report import Report
from kdcompile.debug.runners import Side
from kdcompile.debug.tolerance import Tolerance, of_classes, of_numbers
from kdcompile.debug.variant import Shipped, last_rung, onnx_rung, rounded_rung
from kdcompile.debug.variants import Ladder, Rung
from kdcompile.remote.board import facts_of
from kdcompile.remote.open import Place, open_place
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import Task, find_task

Floats = NDArray[np.float32]
NO_ENGINE = "the bundle has no engine: kdcompile build --via PLACE makes one, or a merge brings one"
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
    on_cpu: bool,
    via: tuple[str | None, str] | None,
) -> Iterator[Ladder]:
    """The ladder of what a bundle carries.

    Args:
        folder: of the bundle, checked against its manifest.
        manifest: of the bundle.
        report: of the bundle.
        on_cpu: its target is a CPU, where ONNX Runtime runs it if there is no engine.
        via: where its engine runs and the worker's backend there; None for none.

    Raises:
        KDError: `parity-incomplete`, with what the bundle lacks; `engine-unknown`; the place's.
    """
    files = manifest["files"]
    carried = read_carried(folder, files, folder / str(manifest["preprocess"]))
    shipped, gates = _shipped(folder, manifest, on_cpu), carried.gates
    task = find_task(str(manifest["task"]))
    metric = task.selection_metric(gates["accuracy"]["metric"])
    fp32 = onnx_rung(carried.fp32)
    assert fp32.side is not None, "the fp32 file runs here"
    share, inputs = fraction(gates["accuracy"]["margin"]), carried.inputs
    tolerance = _bundle_tolerance(folder, report, task, metric, share, fp32.side, inputs)
    absent = NO_ENGINE if shipped.engine is None else UNUSED
    with _place(via) as place:
        rounded = rounded_rung(shipped, carried.files, file_sha256(carried.fp32))
        yield Ladder(
            rungs=[*BEFORE, fp32, rounded, last_rung(shipped, place, absent)],
            images=inputs,
            task=task,
            metric=metric,
            true=None,
            tolerance=tolerance,
            min_sqnr_db=float(gates["parity"]["min_sqnr_db"]),
            source=f"the {len(inputs)} reference inputs of the bundle",
            frames=carried.frames,
        )


def _shipped(folder: Path, manifest: Mapping[str, Any], on_cpu: bool) -> Shipped:
    """What the bundle ships; of an engine as its record says, which a board may have chosen."""
    name = manifest.get("engine")
    if name is None:
        model = folder / str(manifest["model"])
        return Shipped(str(manifest["precision"]), model, None, by_runtime=on_cpu)
    engine = folder / str(name)
    precision, model = source_of(engine, folder, manifest["files"])
    return Shipped(precision, model, engine, by_runtime=False)


@contextmanager
def _place(via: tuple[str | None, str] | None) -> Iterator[tuple[Place, Board] | None]:
    """The place that runs the engine, and its facts."""
    if via is None:
        yield None
        return
    with open_place(*via) as opened:
        yield opened, Board(*via, opened.label, facts_of(opened.about), "host")


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
