"""The networks of the engine benchmark: the student's of its build, the teacher's made alike."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from kdcompile.backends.candidate_runner import FILES as TEACHER_FILES
from kdcompile.backends.candidate_runner import BoardRig
from kdcompile.backends.choose import Limits
from kdcompile.backends.deployed_form import DeployedForm
from kdcompile.backends.mixed import NEEDS, add_mixed
from kdcompile.calib.calibrate import table_of
from kdcompile.calib.chosen import ChosenImages
from kdcompile.calib.collect import best_counting, collect, tensors_to_observe
from kdcompile.calib.qdq import insert_qdq, weight_storage
from kdcompile.calib.sensitivity import (
    Evaluate,
    Outcome,
    measure_sensitivity,
    photo_evaluator,
)
from kdcompile.calib.table import CalibrationTable
from kdcompile.core.files import write_json
from kdcompile.core.store import Artifact, Store, digest
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import Splits, evenly, load_splits
from kdcompile.passes.calibrate import SENSITIVITY_IMAGES
from kdcompile.passes.compile import FILES
from kdcompile.passes.manager import Plan
from kdcompile.passes.shipped_price import file_estimate
from kdcompile.remote.open import Place
from kdcompile.tasks.task import Task, task_of

LOSS = 0.01  # of its fp32 metric: what the teacher's mixed network may lose on validation
MIXED, REFUSED = "student_mixed.onnx", "refused.json"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Networks:
    """One network in several precisions.

    Args:
        who: teacher or student.
        paths: ONNX file by precision.
        refused: why a precision has no file.
        choice: what the build's `auto` chose and why; None for the teacher, which does not ship.
    """

    who: str
    paths: Mapping[str, Path]
    refused: Mapping[str, str]
    choice: Mapping[str, Any] | None = None


class Source:
    """A build's plan with what its stages left, and its data."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.spec, self.target = plan, plan.spec, plan.target
        self.made = plan.found()
        self.prepare = Preprocess.from_json(self.made["export"].json("preprocess.json"))
        self.splits: Splits = load_splits(plan.spec.data, plan.spec.folder)
        self.task: Task = task_of(plan.spec)

    @property
    def shape(self) -> list[int]:
        """The typical input, [1, C, H, W]."""
        return self.spec.export.profile[1]

    def image(self) -> Floats:
        """The input that is timed, float32 [1, C, H, W], as `verify` times it."""
        generator = np.random.default_rng(self.spec.seed)
        return generator.standard_normal(tuple(self.shape), dtype=np.float32)

    def student(self) -> Networks:
        """The candidates of `compile`, and its choice among them."""
        paths = {
            precision: self.made[stage].file(name)
            for precision, (stage, name) in FILES.items()
            if name in self.made[stage].files
        }
        compiled = self.made["compile"]
        if MIXED in compiled.files:
            paths["mixed"] = compiled.file(MIXED)
        choice = compiled.json("choice.json")
        return Networks("student", paths, choice["refused"], choice)


class Remembered:
    """An evaluation whose outcomes are kept in a folder, so that one that was stopped goes on."""

    def __init__(self, folder: Path, make: Callable[[], Evaluate]) -> None:
        """`make` gives the evaluation; it is called only where an outcome is missing."""
        self.folder, self.make = folder, make
        self._evaluate: Evaluate | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, model: onnx.ModelProto) -> Outcome:
        """The outcome of a network, by its content."""
        name = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
        path = self.folder / f"{name}.json"
        if not path.is_file():
            self._evaluate = self._evaluate or self.make()
            write_json(path, asdict(self._evaluate(model)))
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))


class Teacher:
    """The teacher's networks, in a store of the benchmark's own.

    Args:
        source: the student's build, which exported the teacher.
        store: where they are kept, by what they depend on.
        images: that calibrate.
    """

    def __init__(self, source: Source, store: Store, images: int) -> None:
        self.source, self.store, self.images = source, store, images
        exported = source.made["export"]
        self.paths = {p: exported.file(n) for p, n in TEACHER_FILES.items() if n in exported.files}
        self.onnx_sha256 = exported.files[TEACHER_FILES["fp32"]]

    def calibrated(self) -> Artifact:
        """`calibration.json`, `sensitivity.json` and `teacher_int8.onnx`."""
        parts = self.source.plan.parts["calibrate"]
        key = digest([parts, self.onnx_sha256, self.images])
        work = self.store.work("calibrated", key)
        made = self.store.make("calibrated", key, lambda folder: self._calibrate(work, folder))
        self.store.drop_work("calibrated", key)
        return made

    def mixed(self, place: Place) -> Artifact:
        """`student_mixed.onnx` with its plan in `mixed.json`, or the reason in `refused.json`."""
        calibrated, board = self.calibrated(), self.source.plan.board
        assert board is not None, "the benchmark has a board"
        parts = self.source.plan.parts["compile"]
        key = digest([parts, calibrated.files, board.facts])
        return self.store.make("mixed", key, lambda folder: self._mix(place, calibrated, folder))

    def networks(self, place: Place) -> Networks:
        """The teacher in fp32, fp16, int8 and mixed, as far as each can be made."""
        calibrated, mixed = self.calibrated(), self.mixed(place)
        paths = {**self.paths, "int8": calibrated.file("teacher_int8.onnx")}
        if MIXED in mixed.files:
            paths["mixed"] = mixed.file(MIXED)
        refused = mixed.json(REFUSED)
        if "fp16" not in paths:
            refused = {"fp16": "its weights overflow float16", **refused}
        return Networks("teacher", paths, refused)

    def _calibrate(self, work: Path, folder: Path) -> Mapping[str, Any]:
        source, model = self.source, onnx.load(self.paths["fp32"])
        table = self._table(model, work / "calibration.json")
        table.write(folder / "calibration.json")
        target = source.target
        storage = weight_storage(target.backend or target.tensorrt)
        onnx.save(insert_qdq(model, table, storage), folder / "teacher_int8.onnx")
        photos = evenly(source.splits.val, SENSITIVITY_IMAGES)
        metric = source.task.find_metric(source.spec.gates.accuracy.metric)
        evaluate = Remembered(
            work / "evaluations",
            lambda: photo_evaluator(model, photos, source.prepare, source.task, metric),
        )
        found = measure_sensitivity(model, table, evaluate, source.shape, len(photos))
        write_json(folder / "sensitivity.json", found.to_json())
        return {"images": len(table.images), "calibrator": table.calibrator}

    def _table(self, model: onnx.ModelProto, kept: Path) -> CalibrationTable:
        """The ranges; `kept` has them while the layers are still evaluated."""
        if not kept.is_file():
            source = self.source
            chosen = ChosenImages(evenly(source.splits.train, self.images), source.prepare)
            counting = best_counting()
            seen = collect(model, chosen.inputs(), tensors_to_observe(model), counting)
            calibrator = source.spec.quantize.calibrator
            table_of(seen, self.onnx_sha256, chosen.identities, calibrator, counting.name).write(
                kept
            )
        return CalibrationTable.read(kept)

    def _mix(self, place: Place, calibrated: Artifact, folder: Path) -> Mapping[str, Any]:
        source, board = self.source, self.source.plan.board
        assert board is not None, "the benchmark has a board"
        form = DeployedForm(source.prepare, folder)
        rig = BoardRig(place, board, source.spec, source.target, form)
        paths = {**self.paths, "int8": calibrated.file("teacher_int8.onnx")}
        for precision in NEEDS:
            rig.add(precision, paths)
        gates = source.spec.gates
        metric = source.task.find_metric(gates.accuracy.metric)
        value = float(source.made["teacher"].json("teacher.json")[f"val_{metric.name}"])
        limits = Limits(metric, metric.limit(value, LOSS), gates.parity.min_sqnr_db)
        judge = source.splits.val, source.prepare, source.task, limits
        image, shape = source.image(), source.spec.export.profile[1]
        price = partial(file_estimate, known={}, form=form, spec=source.spec, target=source.target)
        add_mixed(rig, paths, calibrated, source.target, judge, image, shape, folder, price)
        write_json(folder / REFUSED, rig.refused)
        for precision in rig.runners:
            place.call("unload", name=precision)
        return {"profiles": sorted(rig.measured)}
