"""The calibrate stage: a table of ranges, the int8 network that uses it, and an audit of both."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from kdcompile.backends.answers import answer_by
from kdcompile.calib import audit
from kdcompile.calib.calibrate import table_of
from kdcompile.calib.chosen import ChosenImages, select_images
from kdcompile.calib.collect import (
    Histograms,
    best_counting,
    collect,
    collect_folds,
    pooled,
    tensors_to_observe,
)
from kdcompile.calib.fp8 import insert_fp8
from kdcompile.calib.keep_if_better import against
from kdcompile.calib.qad_table import read_qad, table_from_qad
from kdcompile.calib.qdq import insert_qdq, may_be_fp8, weight_storage
from kdcompile.calib.refine import FIT_IMAGES, Inputs, Refined, refine
from kdcompile.calib.sensitivity import Sensitivity, measure_sensitivity, photo_evaluator
from kdcompile.calib.table import CalibrationTable
from kdcompile.calib.trt_cache import cache_version, read_cache, write_cache
from kdcompile.config.step import Step
from kdcompile.core.files import write_json
from kdcompile.core.progress import counted
from kdcompile.core.store import Artifact, Store
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import Splits, evenly, load_splits
from kdcompile.onnx_graph.session import cpu_session, run_session
from kdcompile.tasks.agreement import agreement
from kdcompile.tasks.task import task_of

if TYPE_CHECKING:
    from kdcompile.config.spec import Spec
    from kdcompile.targets import Target

CHECK_IMAGES = 4
SENSITIVITY_IMAGES = 8  # each runs through two networks a layer


def run(step: Step, store: Store, target: "Target") -> Artifact:
    """Write `student_int8.onnx`, `calibration.json` and `audit.json`.

    With them `refine.json` and `calibration_refined.json` where refinements were asked for,
    `student_fp8.onnx` where fp8 may be chosen, `sensitivity.json` where int8 and fp16
    may be mixed, and `calibration.cache` where its TensorRT reads calibration caches. The meta
    record holds the calibrator, how the images were chosen and how many there were, what counted
    their activations, the seconds that it took, `sqnr_db`, the worst of int8 against fp32 over a
    few validation photos, and the audit's summary with its warnings.

    Raises:
        KDError: `calib-empty`, `calib-duplicate`, `calib-constant`, `calib-nonfinite` or
            `calib-nothing`; of the spec's cache `calib-cache-format` or `calib-cache-model`.
    """
    return store.make(step.stage, step.key, lambda folder: _build(step, target, folder))


@dataclass(frozen=True)
class _Work:
    """What the steps of a calibration share."""

    spec: "Spec"
    splits: Splits
    prepare: Preprocess
    model: ModelProto
    onnx_sha256: str
    qad: Mapping[str, Any] | None

    def inputs(self, photos: Sequence[Photo]) -> Iterator[NDArray[np.float32]]:
        """float32 [1, C, H, W] of each."""
        shown = counted(photos, len(photos), "calibrate", "images")
        return (self.prepare.input_of(photo) for photo in shown)

    def outputs(self, photos: Sequence[Photo]) -> Iterator[NDArray[Any]]:
        """The network's output for each, one at a time."""
        session = cpu_session(self.model)
        return (run_session(session, image) for image in self.inputs(photos))


@dataclass(frozen=True)
class _Observed:
    """The activations of the chosen images in `audit.FOLDS` parts, and of others, held out."""

    chosen: ChosenImages
    folds: Sequence[Histograms]
    others: Sequence[Photo]
    held: Histograms | None
    counted_by: str


def _build(step: Step, target: "Target", folder: Path) -> Mapping[str, Any]:
    start = time.monotonic()
    exported = step.inputs["export"]
    work = _Work(
        spec=step.spec,
        splits=load_splits(step.spec.data, step.spec.folder),
        prepare=Preprocess.from_json(exported.json("preprocess.json")),
        model=onnx.load(exported.file("student.onnx")),
        onnx_sha256=exported.files["student.onnx"],
        qad=read_qad(step.inputs["distill"].path) if step.spec.quantize.qad else None,
    )
    answer_by(exported, work.splits.val, work.prepare, task_of(work.spec))
    seen = _observe(work)
    table = _table(work, seen)
    record = _audited(work, seen, table)
    table.write(folder / "calibration.json")
    write_json(folder / "audit.json", record)
    software = target.software
    version = cache_version(software)
    if version is not None:
        write_cache(table, folder / "calibration.cache", version)
    refined = _refined(work, seen, table)
    quantised = insert_qdq(refined.model, refined.table, weight_storage(software))
    onnx.save(quantised, folder / "student_int8.onnx")
    if refined.records:
        write_json(folder / "refine.json", refined.to_json())
        refined.table.write(folder / "calibration_refined.json")
    if may_be_fp8(work.spec.quantize.precision, target):
        onnx.save(insert_fp8(work.model, table), folder / "student_fp8.onnx")
    may_mix = work.spec.quantize.precision in ("auto", "mixed")
    if may_mix and {"int8", "fp16"} <= set(target.precisions):
        write_json(folder / "sensitivity.json", _sensitivity(work, table).to_json())
    return {
        "calibrator": table.calibrator,
        "images": len(table.images),
        "select": work.spec.quantize.select,
        "counted_by": table.counted_by,
        "refined": [record.name for record in refined.records if record.kept],
        "sqnr_db": worst_sqnr(work.model, quantised, work.inputs(work.splits.val[:CHECK_IMAGES])),
        **audit.summary(record),
        "seconds": round(time.monotonic() - start, 3),
    }


def _refined(work: _Work, seen: _Observed, table: CalibrationTable) -> Refined:
    """The network and table with the refinements that helped on the validation photos."""
    asked, task = work.spec.quantize, task_of(work.spec)
    if not asked.refine:
        return Refined(work.model, table, ())
    names, counting = tensors_to_observe(work.model), best_counting()

    def again(model: ModelProto) -> CalibrationTable:
        sha256 = hashlib.sha256(model.SerializeToString()).hexdigest()
        found = collect(model, seen.chosen.inputs(), names, counting)
        return table_of(found, sha256, seen.chosen.identities, asked.calibrator, counting.name)

    photos = work.splits.val
    inputs = Inputs(photos, work.prepare)
    judge = against(
        work.model,
        inputs,
        task,
        [task.truth(photo) for photo in photos],
        task.selection_metric(work.spec.gates.accuracy.metric),
        inputs.frames() if task.uses_frames else None,
    )
    fit = Inputs(evenly(seen.chosen.photos, FIT_IMAGES), work.prepare)
    return refine(work.model, table, asked.refine, fit, again, judge)


def _sensitivity(work: _Work, table: CalibrationTable) -> Sensitivity:
    """Of each layer, by the accuracy gate's metric on some validation photos."""
    photos, task = evenly(work.splits.val, SENSITIVITY_IMAGES), task_of(work.spec)
    metric = task.selection_metric(work.spec.gates.accuracy.metric)
    evaluate = photo_evaluator(work.model, photos, work.prepare, task, metric)
    shape = work.spec.export.profile[1]
    return measure_sensitivity(work.model, table, evaluate, shape, len(photos))


def _observe(work: _Work) -> _Observed:
    """Run the images that the spec asks for through the network, and a few that it does not."""
    asked, train = work.spec.quantize, work.splits.train
    photos = select_images(train, asked.select, asked.images, work.spec.seed, work.outputs)
    chosen, names = ChosenImages(photos, work.prepare), tensors_to_observe(work.model)
    counting = best_counting()
    folds = collect_folds(work.model, chosen.inputs(), names, audit.FOLDS, counting)
    others = audit.held_out(train, chosen)
    held = collect(work.model, work.inputs(others), names, counting) if others else None
    return _Observed(chosen, folds, others, held, counting.name)


def _table(work: _Work, seen: _Observed) -> CalibrationTable:
    """The ranges: those of the training, of the cache that the spec names, or as observed."""
    asked = work.spec.quantize
    if work.qad is not None:
        return table_from_qad(work.model, work.onnx_sha256, work.qad)
    if asked.cache is not None:
        return read_cache(asked.cache, work.model, work.onnx_sha256)
    return table_of(
        pooled(seen.folds),
        work.onnx_sha256,
        seen.chosen.identities,
        asked.calibrator,
        seen.counted_by,
    )


def _audited(work: _Work, seen: _Observed, table: CalibrationTable) -> audit.Record:
    asked, splits = work.spec.quantize, work.splits
    return audit.record(
        audit.about_images(seen.chosen, asked.select, asked.images, work.spec.seed),
        audit.strata(splits.train, seen.chosen.photos, task_of(work.spec), splits.classes),
        seen.others,
        audit.about_tensors(table, seen.folds, seen.held),
        len(splits.train),
    )


def worst_sqnr(
    reference: ModelProto, quantised: ModelProto, images: Iterable[NDArray[np.float32]]
) -> float:
    """The lowest 20 log10(||a|| / ||a-b||) over the images, by ONNX Runtime; at most 200 dB."""
    sessions = [cpu_session(model, as_written=True) for model in (reference, quantised)]
    given = list(images)
    a, b = ([run_session(session, image) for image in given] for session in sessions)
    return agreement(a, b)["sqnr_db"]
