"""Parity variants of a build, on validation images, or of a bundle, on its reference inputs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends import engine
from kdcompile.backends.candidate_runner import predict_outputs
from kdcompile.backends.parity_inputs import incomplete, read_carried, source_of
from kdcompile.bundle.manifest import Bundle
from kdcompile.bundle.run_tensors import output_ports
from kdcompile.config.gates import fraction
from kdcompile.config.spec import Spec
from kdcompile.config.step import Board
from kdcompile.core.backends import is_served
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, scratch
from kdcompile.core.ports import Ports
from kdcompile.core.report import Report
from kdcompile.core.store import Artifact
from kdcompile.data.splits import evenly, load_splits
from kdcompile.debug.network import backend_of, engine_missing
from kdcompile.debug.runners import Side
from kdcompile.debug.tolerance import Tolerance, of_classes, of_errors, of_numbers
from kdcompile.debug.torch_runners import ModuleSide, ProgramSide, exported_program
from kdcompile.debug.variant import Shipped, last_rung, onnx_rung, rounded_rung, tolerance_of
from kdcompile.debug.variants import Ladder, Rung
from kdcompile.distill.answers import answer
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.models.factory import load_teacher
from kdcompile.models.shrunk import load_student
from kdcompile.onnx_graph.session import cpu_session, ports_of_session
from kdcompile.remote.open import Place, facts_of, open_place
from kdcompile.targets import load
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import Task, find_task, ports_of, preprocess_of, task_of

if TYPE_CHECKING:
    from torch import nn

    from kdcompile.targets import Target

DERIVED_FROM = 64  # validation photos that the tolerance rests on, at least
FILES = {
    "fp16": ("export", "student_fp16.onnx"),
    "int8": ("calibrate", "student_int8.onnx"),
    "fp8": ("calibrate", "student_fp8.onnx"),
}
NO_ENGINE_BUILT = "the build made no engine; name the place that makes one: --via PLACE"
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
    if spec.export.preprocess == "in-graph":
        raise KDError(
            "bisect-in-graph",
            "what ships takes pixels, and the trained network normalised floats",
            where="[export] preprocess",
            fix='name the bundle in place of the spec, or build with export.preprocess = "host"',
        )
    (foot, _), compiled = _foot(spec, made["distill"], images), made["compile"]
    shipped = Shipped(
        precision=compiled.json("choice.json")["precision"],
        model=compiled.file("model.onnx"),
        engine=compiled.file("model.engine") if "model.engine" in compiled.files else None,
        by_runtime=target.kind == "cpu" and board is None,
        rows=foot.task.takes_rows,
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
            place = stack.enter_context(engine.at(board, ports_of(spec))), board
        more = onnx_rung(fp32[0], shipped.rows), rounded_rung(shipped, files, fp32[1])
        yield replace(foot, rungs=[*foot.rungs, *more, last_rung(shipped, place, NO_ENGINE_BUILT)])


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
        yield replace(foot, rungs=[*foot.rungs, onnx_rung(path, foot.task.takes_rows), *absent])


def _foot(spec: Spec, distilled: Artifact, images: int) -> "tuple[Ladder, nn.Module]":
    """The ladder's first two rungs, the trained module and its exported program, and the module."""
    task, prepare, ports = task_of(spec), preprocess_of(spec), ports_of(spec)
    photos = load_splits(spec.data, spec.folder).val
    many, few = evenly(photos, max(images, DERIVED_FROM)), evenly(photos, images)
    module, gate = load_student(spec, distilled), spec.gates.accuracy
    metric = task.selection_metric(gate.metric)
    if ports is not None:
        answer(spec, load_teacher(spec), [*many, *few])
    inputs, frames = predict_outputs(lambda image: image, few, prepare)
    first = ModuleSide(module, inputs[0])
    outputs, lie = predict_outputs(lambda image: first.run(image)[first.output], many, prepare)
    true = [task.truth(photo) for photo in many]
    program = ProgramSide(exported_program(module, spec.export.profile), ports)
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
        outputs=first.outputs,
    )
    return ladder, module


Floats = NDArray[np.float32]
NO_ENGINE_CARRIED = (
    "the bundle has no engine: kdcompile build --via PLACE makes one, or a merge brings one"
)
UNUSED = "the bundle has an engine; name the place that runs it: --via PLACE"
IN_SPEC = "a bundle carries no PyTorch network; name the spec instead"
BEFORE = (
    Rung("pytorch", "the trained module", absent=IN_SPEC),
    Rung("exported", "torch.export's program", absent=IN_SPEC),
)


def open_bundle_ladder(bundle: Bundle, via: str | None) -> AbstractContextManager[Ladder]:
    """The ladder of a bundle, with its engine where that can run.

    Args:
        bundle: checked against its manifest.
        via: where its engine runs; None for this machine, if its backend is served here.

    Raises:
        KDError: `engine-missing`; those of `bundle_ladder`.
    """
    if via is not None and bundle.engine is None:
        raise engine_missing(bundle)
    backend = None if bundle.engine is None else backend_of(bundle)
    place = None if backend is None or not (via or is_served(backend)) else (via, backend)
    on_cpu = load(bundle.target).kind == "cpu"
    return bundle_ladder(bundle.folder, bundle.manifest, bundle.report(), on_cpu, place)


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
    gates = carried.gates
    task = find_task(str(manifest["task"]))
    name = gates["accuracy"]["metric"]
    if task.takes_rows and name != task.metric.name:
        raise incomplete(folder, [f"function of its metric {name} (task.metric of the spec)"])
    metric = task.selection_metric(name)
    fp32 = onnx_rung(carried.fp32, task.takes_rows)
    assert fp32.side is not None, "the fp32 file runs here"
    shipped = replace(_shipped(folder, manifest, on_cpu), rows=task.takes_rows)
    share, inputs = fraction(gates["accuracy"]["margin"]), carried.inputs
    tolerance = _bundle_tolerance(folder, report, task, metric, share, fp32.side, inputs)
    absent = NO_ENGINE_CARRIED if shipped.engine is None else UNUSED
    ports = ports_of_session(cpu_session(carried.fp32)) if task.takes_rows else None
    with _place(via, ports) as place:
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
            outputs=output_ports(carried.fp32) if task.takes_rows else None,
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
def _place(
    via: tuple[str | None, str] | None, ports: Ports | None
) -> Iterator[tuple[Place, Board] | None]:
    """The place that runs the engine, and its facts; `ports` of `engine.at`."""
    if via is None:
        yield None
        return
    with open_place(*via) as opened:
        opened.ports = ports
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
    if task.takes_rows or task.records:
        return of_errors(metric, share, predicted)
    return of_numbers(task, metric, share, predicted, true)
