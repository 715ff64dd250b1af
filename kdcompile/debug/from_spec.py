"""The ladder of a build: every rung, on validation images."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kdcompile.backends import engine
from kdcompile.backends.predict import predict_outputs
from kdcompile.config.board import Board
from kdcompile.config.gates import fraction
from kdcompile.config.spec import Spec
from kdcompile.core.files import scratch
from kdcompile.core.store import Artifact
from kdcompile.data.splits import evenly, load_splits
from kdcompile.debug.program import exported_program
from kdcompile.debug.runners import ModuleSide, ProgramSide
from kdcompile.debug.variant import Shipped, last_rung, onnx_rung, rounded_rung, tolerance_of
from kdcompile.debug.variants import Ladder, Rung
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.models.shrunk import load_student
from kdcompile.tasks.preprocess import preprocess_of
from kdcompile.tasks.task import find_task

if TYPE_CHECKING:
    from torch import nn

    from kdcompile.targets import Target

DERIVED_FROM = 64  # validation photos that the tolerance rests on, at least
FILES = {
    "fp16": ("export", "student_fp16.onnx"),
    "int8": ("calibrate", "student_int8.onnx"),
    "fp8": ("calibrate", "student_fp8.onnx"),
}
NO_ENGINE = "the build made no engine; name the place that makes one: --via PLACE"
UNEXPORTED = "the build stops at its export, which this ladder looks into"


@contextmanager
def spec_ladder(
    spec: Spec,
    target: "Target",
    made: Mapping[str, Artifact],
    board: Board | None,
    images: int,
) -> Iterator[Ladder]:
    """The ladder of a build, on its validation images.

    Args:
        spec: of the build.
        target: of the build.
        made: its artifacts, of distill, export, calibrate and compile.
        board: where its engine was built; None where none was.
        images: to run, spread over the split.

    Raises:
        KDError: the data's, the weights', the exporter's or the board's.
    """
    (foot, _), compiled = _foot(spec, made["distill"], images), made["compile"]
    shipped = Shipped(
        precision=compiled.json("choice.json")["precision"],
        model=compiled.file("model.onnx"),
        engine=compiled.file("model.engine") if "model.engine" in compiled.files else None,
        by_runtime=target.kind == "cpu" and board is None,
    )
    files = {
        precision: made[stage].file(name)
        for precision, (stage, name) in FILES.items()
        if name in made[stage].files
    }
    fp32 = made["export"].file("student.onnx"), made["export"].files["student.onnx"]
    with ExitStack() as stack:
        place = None
        if board is not None and shipped.engine is not None:
            place = stack.enter_context(engine.at(board)), board
        more = onnx_rung(fp32[0]), rounded_rung(shipped, files, fp32[1])
        yield replace(foot, rungs=[*foot.rungs, *more, last_rung(shipped, place, NO_ENGINE)])


@contextmanager
def export_ladder(
    spec: Spec, target: "Target", distilled: Artifact, images: int
) -> Iterator[Ladder]:
    """The first three rungs, for a network that the export stage refuses for its outputs.

    Raises:
        KDError: as `spec_ladder`.
    """
    foot, module = _foot(spec, distilled, images)
    with scratch() as folder:
        path = Path(folder) / "student.onnx"
        onnx_from_module(
            module, path, spec.export.profile, target.max_opset, target.ir_version,
            foot.task.output,
        )  # fmt: skip
        absent = [Rung(name, "", absent=UNEXPORTED) for name in ("rounded", "engine")]
        yield replace(foot, rungs=[*foot.rungs, onnx_rung(path), *absent])


def _foot(spec: Spec, distilled: Artifact, images: int) -> "tuple[Ladder, nn.Module]":
    """The ladder's first two rungs, the trained module and its exported program, and the module."""
    task, prepare = find_task(spec.task.kind), preprocess_of(spec.data, spec.export, spec.task)
    photos = load_splits(spec.data, spec.folder).val
    many, few = evenly(photos, max(images, DERIVED_FROM)), evenly(photos, images)
    module, gate = load_student(spec, distilled), spec.gates.accuracy
    metric = task.selection_metric(gate.metric)
    inputs, frames = predict_outputs(lambda image: image, few, prepare)
    first = ModuleSide(module, inputs[0])
    outputs, lie = predict_outputs(lambda image: first.run(image)[first.output], many, prepare)
    true = [task.truth(photo) for photo in many]
    program = ProgramSide(exported_program(module, spec.export.profile))
    ladder = Ladder(
        rungs=[
            Rung("pytorch", "the trained module", side=first),
            Rung("exported", "torch.export's program", side=program),
        ],
        images=inputs,
        task=task,
        metric=metric,
        true=[task.truth(photo) for photo in few],
        tolerance=tolerance_of(task, metric, fraction(gate.margin), outputs, lie, true),
        min_sqnr_db=spec.gates.parity.min_sqnr_db,
        source=f"{len(few)} of {len(photos)} validation images",
        frames=frames,
    )
    return ladder, module
