"""Stage `verify`: the networks of a build on the test split, which only this stage reads."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import kdcompile
from kdcompile.artifact import Artifact, Step, Store, write_json
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.backends.predict import Runner
from kdcompile.bench.machine import fingerprint, fingerprint_id
from kdcompile.bench.paired import alternate
from kdcompile.data.agreement import LIMIT_DB
from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess
from kdcompile.data.splits import evenly, load_splits
from kdcompile.data.task import Task, find_task
from kdcompile.gates.context import Latency, Outcomes, Parity, Prediction, VerifyContext
from kdcompile.gates.evaluate import (
    Evaluation,
    evaluate,
    example_arrays,
    pick_examples,
)
from kdcompile.gates.registry import judge
from kdcompile.gates.summary import measurements, part_rows, prediction_rows
from kdcompile.report import GateResult, Report, overall
from kdcompile.spec import Gates
from kdcompile.targets import Target

DEPLOYABLE = (".onnx", ".ort", ".engine", ".plan")
OVERFLOW = 1e30  # a relative error without bound: JSON has no infinity
BLOCKS, WARMUP, TIMING_SECONDS = 30, 3, 30.0
log = logging.getLogger("kdcompile")


def run(step: Step, store: Store, target: Target) -> Artifact:
    """Measure teacher and student, judge the gates; `report.json` and `example_*.npz`.

    Takes the artifacts of teacher, search, distill, export, calibrate and compile.

    Raises:
        KDError: the data cannot be read, or a network gave no number.
        ToolMissingError: ONNX Runtime is not installed.
    """
    return store.make(step.stage, step.key, lambda folder: _build(step, target, folder))


def _build(step: Step, target: Target, folder: Path) -> Mapping[str, Any]:
    spec, inputs = step.spec, step.inputs
    splits = load_splits(spec.data, spec.folder)
    photos = evenly(splits.test, spec.data.max_test)
    log.info("verify: %d of %d test photos", len(photos), len(splits.test))
    preprocess = Preprocess.from_json(inputs["export"].json("preprocess.json"))
    threads = int(fingerprint()["usable_cores"])
    paths = _networks(inputs)
    runners = {name: open_session(path, threads) for name, path in paths.items()}
    deployed = _deployed(inputs)
    task = find_task(spec.task.kind)
    compared = ("student_fp32", deployed)
    found = evaluate(runners, compared, photos, preprocess, task, splits.classes)
    context = VerifyContext(
        target=target,
        precision=inputs["compile"].json("choice.json")["precision"],
        task=task,
        outcomes=_outcomes(task, photos, found, deployed, len(splits.test)),
        parity=_parity(inputs, found, deployed),
        latency=_time(step, target, runners, deployed, threads),
        predictions=predictions(inputs["search"].json("estimate.json")),
        files=deployable(inputs["compile"]),
        seed=spec.seed,
        machine=fingerprint_id(),
        backend=runners["teacher"].name,
        backend_version=runners["teacher"].version,
    )
    gates = judge(_with_metric(spec.gates, task), context)
    for result in gates:
        log.info("verify: %s %s, %s", result.name, result.verdict, result.observed)
    drawn = {"student": runners[deployed], "teacher": runners["teacher"]} if task.is_dense else {}
    chosen = pick_examples(found.difficulty)
    for kind, index in chosen.items():
        _save_example(folder / f"example_{kind}.npz", photos[index], preprocess, drawn)
    details = {
        "task": task.facts(splits.classes),
        "predictions": prediction_rows(context.outcomes),
        task.parts: part_rows(task, context.outcomes, splits.classes),
        "teacher": inputs["teacher"].json("teacher.json"),
        "distill": inputs["distill"].json("result.json"),
        "choice": inputs["compile"].json("choice.json"),
        "calibration": dict(inputs["calibrate"].meta),
        "parity": inputs["export"].json("parity.json"),
        "examples": _examples(context, chosen, splits.classes),
        "dropped": splits.dropped,
        "max_test": spec.data.max_test,
        "test_photos": len(splits.test),
    }
    report = _report(step, target, context, gates, details)
    write_json(folder / "report.json", report.to_json())
    return {"verdict": report.verdict, "exit_code": report.exit_code}


def _networks(inputs: Mapping[str, Artifact]) -> dict[str, Path]:
    """The networks to run, by name; the deployed one only where it is a file of its own."""
    paths = {
        "teacher": inputs["export"].file("teacher.onnx"),
        "student_fp32": inputs["export"].file("student.onnx"),
        "student_int8": inputs["calibrate"].file("student_int8.onnx"),
    }
    if _deployed(inputs) == "student":
        paths["student"] = inputs["compile"].file("model.onnx")
    return paths


def _deployed(inputs: Mapping[str, Artifact]) -> str:
    """The name of the network that `model.onnx` is, by its hash: the judged file is the shipped."""
    sha = inputs["compile"].files["model.onnx"]
    if sha == inputs["export"].files["student.onnx"]:
        return "student_fp32"
    if sha == inputs["calibrate"].files["student_int8.onnx"]:
        return "student_int8"
    return "student"


def _outcomes(
    task: Task, photos: list[Photo], found: Evaluation, deployed: str, available: int
) -> Outcomes:
    return Outcomes(
        names=tuple(photo.name for photo in photos),
        true=np.array([task.truth(photo) for photo in photos], dtype=np.float64),
        teacher=found.predicted["teacher"],
        student_fp32=found.predicted["student_fp32"],
        student_int8=found.predicted["student_int8"],
        student=found.predicted[deployed],
        available=available,
    )


def _with_metric(gates: Gates, task: Task) -> Gates:
    """The gates with the task's metric where the spec names none."""
    metric = task.find_metric(gates.accuracy.metric).name
    return gates.model_copy(
        update={"accuracy": gates.accuracy.model_copy(update={"metric": metric})}
    )


def _parity(inputs: Mapping[str, Artifact], found: Evaluation, deployed: str) -> Parity:
    """The deployed network's.

    Where that is the fp32 export itself, export's against PyTorch. Where it is fp16, export's with
    every layer rounded to half: a CPU computes an fp16 file in fp32 and would show no difference.
    """
    precision = inputs["compile"].json("choice.json")["precision"]
    if precision == "fp16":
        name, mode = "student_fp16", "fp16 storage of every layer against fp32, in PyTorch"
    elif deployed == "student_fp32":
        name, mode = "student", "fp32 ONNX against PyTorch"
    else:
        return found.parity
    known = inputs["export"].json("parity.json")[name]
    if known["sqnr_db"] is None:
        return Parity(-LIMIT_DB, OVERFLOW, known["n"], f"{mode}: it overflows")
    return Parity(
        min(known["sqnr_db"], LIMIT_DB),
        known["max_rel_error"],
        known["n"],
        f"{mode}, on validation photos",
    )


def _time(
    step: Step, target: Target, runners: Mapping[str, Runner], deployed: str, threads: int
) -> Latency:
    """Teacher and student at the typical input shape.

    Where this machine is the target the deployed file is timed. For another device both sides are
    timed in fp32: how its int8 or fp16 compares is not for this CPU to say.
    """
    precision = step.inputs["compile"].json("choice.json")["precision"]
    shape = step.spec.export.profile[1]
    mode = f"ONNX Runtime CPU, {'x'.join(map(str, shape))}, {threads} threads, alternating"
    if target.kind != "cpu" and precision != "fp32":
        mode += f", both in fp32; {precision} is chosen for the device"
        precision, deployed = "fp32", "student_fp32"
    image = np.random.default_rng(step.spec.seed).standard_normal(shape, dtype=np.float32)
    teacher, student = runners["teacher"], runners[deployed]
    log.info("verify: timing teacher and student, at most %.0f s", TIMING_SECONDS)
    times = alternate(
        lambda: teacher(image),
        lambda: student(image),
        blocks=BLOCKS,
        warmup=WARMUP,
        seconds=TIMING_SECONDS,
    )
    return Latency(times, precision, mode)


def predictions(estimate: Mapping[str, Any]) -> dict[str, Prediction]:
    """The latency model's numbers of `estimate.json`, by precision."""
    found = {}
    for precision, teacher in estimate["teacher"].items():
        student = estimate["student"].get(precision)
        if not isinstance(teacher, dict) or student is None:
            continue  # MACs and parameters stand beside the precisions
        band = max(side["high_ms"] / side["ms"] for side in (teacher, student))
        validated = bool(teacher["validated"] and student["validated"])
        found[precision] = Prediction(teacher["ms"], student["ms"], band, validated)
    return found


def deployable(compiled: Artifact) -> dict[str, int]:
    """Bytes by name of the networks that `compile` made for deployment, the kit's included."""
    return {
        name: (compiled.path / name).stat().st_size
        for name in sorted(compiled.files)
        if name.endswith(DEPLOYABLE) and not Path(name).name.startswith("teacher")
    }


def _save_example(
    path: Path, photo: Photo, preprocess: Preprocess, drawn: Mapping[str, Runner]
) -> None:
    with path.open("wb") as stream:
        arrays = example_arrays(photo, preprocess, drawn)
        np.savez_compressed(stream, allow_pickle=False, **arrays)


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
                name: context.task.name_of(float(value[index]), classes)
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
    files = [export.file(n) for n in ("teacher.onnx", "student.onnx", "student_fp16.onnx")]
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
            "fingerprint": context.machine,
            "machine": fingerprint(),
            "backend": context.backend,
            "backend_version": context.backend_version,
            "target": target.full_name,
        },
        details=details,
    )
