"""Stage `verify`: the networks of a build on the test split, which only this stage reads."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import kdcompile
from kdcompile.backends.answers import answer_by
from kdcompile.backends.candidate_runner import teacher_precision
from kdcompile.bundle.trust import Trust
from kdcompile.config.step import Step
from kdcompile.core.files import write_json
from kdcompile.core.report import GateResult, Report, overall
from kdcompile.core.store import Artifact, Store
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import Splits, judged, load_splits, photos_digest, splits_digest
from kdcompile.gates.context import Outcomes, Prediction, VerifyContext
from kdcompile.gates.frame import frame_of
from kdcompile.gates.measure import Measured, measure
from kdcompile.gates.reference_bundle import PREVIOUS, earlier_folder, open_earlier
from kdcompile.gates.registry import judge
from kdcompile.gates.resources import measured_resources
from kdcompile.gates.speedup import target_speed
from kdcompile.gates.summary import (
    compiled_details,
    measurements,
    part_rows,
    prediction_rows,
    worst_rows,
)
from kdcompile.latency.environment import fingerprint, fingerprint_id
from kdcompile.passes.shipped_price import shipped_estimate
from kdcompile.passes.time_by_kind import time_by_kind
from kdcompile.targets import Target
from kdcompile.tasks.records import value_of
from kdcompile.tasks.reference import taught
from kdcompile.tasks.task import Task, task_of

ROWS = "rows.npz"  # of a task of records
NETWORKS, SHIPPED = (".onnx", ".engine"), ("model.", "kit/student")
log = logging.getLogger("kdcompile")
NO_DLA_MODEL = "a DLA's latency is not predicted, and compile.dla asks for one: the device decides"


def run(step: Step, store: Store, target: Target) -> Artifact:
    """Measure teacher and student, judge the gates; `report.json` and `example_*.npz`.

    Of a task of records also `rows.npz`: the teacher's rows, and those of an earlier bundle.

    Takes the artifacts of teacher, search, distill, export, calibrate and compile.

    Raises:
        KDError: the data cannot be read, or a network gave no number.
        ToolMissingError: ONNX Runtime is not installed.
    """
    return store.make(step.stage, step.key, lambda folder: _build(step, store, target, folder))


def _build(step: Step, store: Store, target: Target, folder: Path) -> Mapping[str, Any]:
    spec, inputs = step.spec, step.inputs
    splits = load_splits(spec.data, spec.folder)
    photos = judged(splits.test, spec.data.max_test)
    copies = len(splits.test) - len(judged(splits.test, None))
    note = f", as {copies} are copies of others" if copies else ""
    log.info("verify: %d of %d test images%s", len(photos), len(splits.test), note)
    preprocess = Preprocess.from_json(inputs["export"].json("preprocess.json"))
    task = task_of(spec)
    answer_by(inputs["export"], photos, preprocess, task)
    annotated = photos_digest(splits.test)
    other = earlier_folder(spec)
    earlier = None
    if other is not None:
        trust = Trust.of(step.trusted, step.expect)
        earlier = open_earlier(other, task, splits.classes, annotated, trust)
    ships = preprocess.deployed(spec.export.preprocess)
    found = measure(step, target, photos, (preprocess, ships), task, splits.classes, earlier)
    for kind in found.chosen:
        arrays = found.examples[kind]
        np.savez_compressed(folder / f"example_{kind}.npz", allow_pickle=False, **arrays)
    outcomes = _outcomes(task, photos, found, len(splits.test), inputs["teacher"])
    if task.records:  # what a test pack holds a board's outputs against
        rows = {
            who: found.predicted[who] for who in ("teacher", PREVIOUS) if who in found.predicted
        }
        np.savez_compressed(folder / ROWS, allow_pickle=False, **rows)
    estimate = shipped_estimate(step, target)
    context = _context(step, target, task, found, outcomes, photos, splits.classes, estimate)
    gates = judge(spec.gates.with_metric(task.judged.name), context)
    for result in gates:
        log.info("verify: %s %s, %s", result.name, result.verdict, result.observed)
    both = ("teacher", "student") if task.records else ()
    kept = {who: outcomes.errors(task, who, task.judged) for who in both}
    details = {
        "task": task.facts(splits.classes),
        "predictions": prediction_rows(context.outcomes),
        task.parts: part_rows(task, context.outcomes, splits.classes),
        "curves": task.curves(kept, splits.classes),
        "tables": list(task.tables(kept, splits.classes)),
        "worst": worst_rows(task, context.outcomes, found.difficulty, splits.classes),
        "previous": None if found.earlier is None else asdict(found.earlier),
        "teacher": inputs["teacher"].json("teacher.json"),
        "distill": inputs["distill"].json("result.json"),
        "choice": inputs["compile"].json("choice.json"),
        "calibration": dict(inputs["calibrate"].meta),
        "parity": inputs["export"].json("parity.json"),
        **compiled_details(inputs),
        "costs": costs(inputs),
        "target_speed": target_speed(context),
        "time": time_by_kind(estimate, context.precision) if context.predictions else None,
        "examples": _examples(context, found.chosen, splits.classes),
        "data": _data(splits, splits_digest(spec.data, spec.folder, store.hasher), annotated),
        "dropped": splits.dropped,
        "max_test": spec.data.max_test,
        "test_photos": len(splits.test),
        "test_copies": copies,
    }
    report = _report(step, target, context, gates, details)
    write_json(folder / "report.json", report.to_json())
    return {"verdict": report.verdict, "exit_code": report.exit_code}


def _context(
    step: Step,
    target: Target,
    task: Task,
    found: Measured,
    outcomes: Outcomes,
    photos: Sequence[Photo],
    classes: tuple[str, ...] | None,
    estimate: Mapping[str, Any],
) -> VerifyContext:
    inputs = step.inputs
    choice = inputs["compile"].json("choice.json")
    unpredicted = NO_DLA_MODEL if step.spec.compile.dla is not None else ""
    known = {} if unpredicted else predictions(estimate)
    return VerifyContext(
        target=target,
        precision=choice["precision"],
        task=task,
        outcomes=outcomes,
        parity=found.parity,
        latency=found.latency,
        predictions=known,
        files=deployable(inputs["compile"]),
        seed=step.spec.seed,
        deployed=found.deployed,
        host=found.host,
        extra=found.extra,
        earlier=found.earlier,
        classes=classes,
        resources=measured_resources(step, target),
        frame=frame_of(step, target, photos, classes, known.get(choice["precision"])),
        unpredicted=unpredicted,
    )


def _outcomes(
    task: Task, photos: list[Photo], found: Measured, available: int, teacher: Artifact
) -> Outcomes:
    true = np.array([task.truth(photo) for photo in photos], dtype=np.float64)
    known = taught(task, true, teacher.json("teacher.json")["output"][0])
    roles = {name: name for name in ("teacher", "student_fp32", "student_int8", PREVIOUS)}
    roles["student"] = found.shipped
    return Outcomes(
        names=tuple(photo.name for photo in photos),
        true=true,
        available=available,
        taught=None if known.all() else known,
        maps={role: found.maps[name] for role, name in roles.items() if name in found.maps},
        **{role: found.predicted[name] for role, name in roles.items() if name in found.predicted},
    )


def predictions(estimate: Mapping[str, Any]) -> dict[str, Prediction]:
    """The latency model's numbers by the student's precision.

    The teacher's is at the precision that it would be deployed in beside it, else at fp32.

    Args:
        estimate: of `estimate.json`, with the mixed network's where that ships.
    """
    found = {}
    teachers, speedups = estimate["teacher"], estimate["speedups"]
    for precision, student in estimate["student"].items():
        beside = teacher_precision(precision)
        beside = beside if beside in teachers else "fp32"
        teacher = teachers.get(beside)
        if not isinstance(student, dict) or teacher is None:
            continue  # MACs and parameters stand beside the precisions
        band = max(side["high_ms"] / side["ms"] for side in (teacher, student))
        validated = bool(teacher["validated"] and student["validated"])
        ratio = speedups[precision]["low"], speedups[precision]["high"]
        found[precision] = Prediction(teacher["ms"], student["ms"], band, validated, ratio, beside)
    return found


def costs(inputs: Mapping[str, Artifact]) -> dict[str, dict[str, int]]:
    """Multiply-adds, parameters and bytes as ONNX of the teacher and of what ships."""
    estimate = inputs["search"].json("estimate.json")
    files = {
        "teacher": inputs["export"].path / "teacher.onnx",
        "student": inputs["compile"].path / "model.onnx",
    }
    return {
        who: {key: estimate[who][key] for key in ("macs", "params")}
        | {"bytes": path.stat().st_size}
        for who, path in files.items()
    }


def deployable(compiled: Artifact) -> dict[str, int]:
    """Bytes by name of the networks that the bundle ships: what was chosen, and the kit's."""
    return {
        name: (compiled.path / name).stat().st_size
        for name in sorted(compiled.files)
        if name.endswith(NETWORKS) and name.startswith(SHIPPED)
    }


def _data(splits: Splits, digests: Mapping[str, str], annotated: str) -> dict[str, dict[str, Any]]:
    """How many images each split has, and the hash of its content.

    Of the test split also that of its photos and annotations alone, by which a later build knows
    that it tests on the same.
    """
    found: dict[str, dict[str, Any]] = {
        name: {"images": len(getattr(splits, name)), "sha256": sha256}
        for name, sha256 in digests.items()
    }
    found["test"]["photos_sha256"] = annotated
    return found


def _examples(
    context: VerifyContext, chosen: Mapping[str, int], classes: Sequence[str] | None
) -> list[dict[str, Any]]:
    """What the report says of the best, the median and the worst photo."""
    outcomes = context.outcomes
    values = {"true": outcomes.true, "predicted": outcomes.student, "teacher": outcomes.teacher}
    return [
        {
            "name": outcomes.names[index],
            "kind": kind,
            "file": f"example_{kind}.npz",
            **{
                name: context.task.name_of(value_of(value[index]), classes)
                for name, value in values.items()
            },
        }
        for kind, index in chosen.items()
    ]


def _report(
    step: Step,
    target: Target,
    context: VerifyContext,
    gates: list[GateResult],
    details: Mapping[str, Any],
) -> Report:
    export, calibrate = step.inputs["export"], step.inputs["calibrate"]
    names = ("teacher.onnx", "student.onnx", "student_fp16.onnx")
    files = [export.file(name) for name in names if name in export.files]
    files.append(calibrate.file("student_int8.onnx"))
    verdict, exit_code = overall(gates)
    return Report(
        name=step.spec.name,
        target=target.name,
        verdict=verdict,
        exit_code=exit_code,
        gates=tuple(gates),
        measurements=measurements(context, {path.name: path.stat().st_size for path in files}),
        environment={
            "kdcompile": kdcompile.__version__,
            "fingerprint": fingerprint_id(),
            "machine": fingerprint(),
            "backend": context.deployed.backend,
            "backend_version": context.deployed.backend_version,
            "target": target.full_name,
        },
        details=details,
    )
