"""Stage `compile`: the precision that ships, its file, and for a board the kit that builds it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.artifact import Artifact, Step, Store, write_json
from kdcompile.backends.choose import Limits, choose, judge
from kdcompile.backends.kit import MAX_REFERENCES, write_kit
from kdcompile.backends.onnxruntime_ import OrtRunner, open_session
from kdcompile.backends.predict import predict_outputs
from kdcompile.backends.tensorrt_rtx_ import compile_check
from kdcompile.data.agreement import LIMIT_DB, pooled_sqnr
from kdcompile.data.metric import Metric
from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess
from kdcompile.data.splits import load_splits
from kdcompile.data.task import Task, find_task
from kdcompile.errors import KDError
from kdcompile.report import Evidence
from kdcompile.spec import fraction
from kdcompile.targets import Target

Floats = NDArray[np.float32]
FILES = {
    "fp32": ("export", "student.onnx"),
    "fp16": ("export", "student_fp16.onnx"),
    "int8": ("calibrate", "student_int8.onnx"),
}
WARMUP, ROUNDS, SECONDS = 2, 15, 10.0
MIN_ROUNDS = 5


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one image at the typical shape, and where the number is from."""

    ms: float
    evidence: Evidence
    note: str


def run(step: Step, store: Store, target: Target) -> Artifact:
    """Choose the precision on validation; `choice.json`, `model.onnx`, for a board `kit/`.

    Reads the sections quantize, export, gates, data and task, and the artifacts of teacher,
    search, export and calibrate. The test split is not touched.

    Raises:
        KDError: `precision-unsupported`, the target has no such arithmetic; what data and
            sessions raise.
    """

    return store.make(step.stage, step.key, lambda folder: _build(step, target, folder))


def _build(step: Step, target: Target, folder: Path) -> Mapping[str, Any]:
    spec, task = step.spec, find_task(step.spec.task.kind)
    paths = candidate_paths(step, target)
    preprocess = Preprocess.from_json(step.inputs["export"].json("preprocess.json"))
    photos = load_splits(spec.data, spec.folder).val
    runners = {precision: open_session(path) for precision, path in paths.items()}
    typical = _typical(photos[0], preprocess, spec.export.profile[1])
    latencies = _latencies(runners, typical, target, step.inputs["search"])
    reference, limits = _limits(step, task)
    outputs = {p: predict_outputs(runner, photos, preprocess) for p, runner in runners.items()}
    sqnr = _sqnr(outputs, step.inputs["export"])
    candidates = [
        judge(
            precision,
            latencies[precision].ms,
            latencies[precision].evidence,
            _metric(found, photos, task, limits.metric),
            sqnr[precision],
            limits,
        )
        for precision, found in outputs.items()
    ]
    choice = choose(candidates, limits.metric, spec.quantize.precision)
    (folder / "model.onnx").write_bytes(paths[choice.precision].read_bytes())
    record = {
        **asdict(choice),
        "backend": "onnxruntime",
        "backend_version": runners["fp32"].version,
        "target_backend": "tensorrt" if target.tensorrt else "onnxruntime",
        "target_backend_version": target.backend or target.tensorrt,
        "metric": limits.metric.name,
        "teacher_metric": reference,
        "limit": limits.limit,
        "n_val": len(photos),
        "candidates": [asdict(c) | {"latency": latencies[c.precision].note} for c in candidates],
        "rtx_compile_check": _rtx(paths, spec.export.profile),
    }
    write_json(folder / "choice.json", record)
    if target.is_foreign:
        _kit(step, target, folder, paths, runners, photos, choice.precision)
    return _meta(record)


def _limits(step: Step, task: Task) -> tuple[float, Limits]:
    """The teacher's metric on validation, and what the gates allow beside it."""
    gates = step.spec.gates
    metric = task.find_metric(gates.accuracy.metric)
    teacher = float(step.inputs["teacher"].json("teacher.json")[f"val_{metric.name}"])
    limit = metric.limit(teacher, fraction(gates.accuracy.max_increase))
    return teacher, Limits(metric, limit, gates.parity.min_sqnr_db)


def _kit(
    step: Step,
    target: Target,
    folder: Path,
    paths: Mapping[str, Path],
    runners: Mapping[str, OrtRunner],
    photos: Sequence[Photo],
    predicted: str,
) -> None:
    """The kit with the first validation photos as its reference."""
    preprocess_file = step.inputs["export"].file("preprocess.json")
    preprocess = Preprocess.from_json(step.inputs["export"].json("preprocess.json"))
    images = [preprocess(p.pixels(preprocess.channels)) for p in photos[:MAX_REFERENCES]]
    outputs = {p: [runner(image) for image in images] for p, runner in runners.items()}
    task, gates = find_task(step.spec.task.kind), step.spec.gates.model_dump(mode="json")
    gates["accuracy"]["metric"] = task.find_metric(gates["accuracy"]["metric"]).name
    write_kit(
        folder,
        target,
        paths,
        step.inputs["calibrate"].file("calibration.json"),
        preprocess_file,
        gates,
        (images, outputs),
        task,
        profile=step.spec.export.profile,
        predicted=predicted,
    )


def candidate_paths(step: Step, target: Target) -> dict[str, Path]:
    """The ONNX of each precision that is built for the target.

    Raises:
        KDError: `precision-unsupported`.
    """
    known = [precision for precision in FILES if precision in target.precisions]
    asked = step.spec.quantize.precision
    if asked not in ("auto", *known):
        raise KDError(
            "precision-unsupported",
            f"{target.name} has no {asked}; it has {', '.join(known)}",
            where="[quantize] precision",
            fix=f"--set quantize.precision=auto, or one of {', '.join(known)}",
        )
    return {p: step.inputs[FILES[p][0]].file(FILES[p][1]) for p in known}


def _metric(
    outputs: Sequence[Floats], photos: Sequence[Photo], task: Task, metric: Metric
) -> float:
    predicted = [float(task.predictions(output)[0]) for output in outputs]
    return metric(task.errors(predicted, [task.truth(photo) for photo in photos]))


def _sqnr(outputs: Mapping[str, Sequence[Floats]], export: Artifact) -> dict[str, float]:
    """Agreement of each candidate's outputs with fp32's, in dB.

    A CPU computes an fp16 file in fp32, so that one is export's, with every layer rounded to half;
    an overflow there is no agreement at all.
    """
    found = {p: pooled_sqnr(outputs["fp32"], of_precision) for p, of_precision in outputs.items()}
    if "fp16" in found:
        half = export.json("parity.json")["student_fp16"]
        found["fp16"] = half["sqnr_db"] if half["finite"] else -LIMIT_DB
    return found


def _latencies(
    runners: Mapping[str, OrtRunner], image: Floats, target: Target, search: Artifact
) -> dict[str, Latency]:
    """Measured here where here is the target, else what the latency model predicts."""
    if target.kind == "cpu":
        calls = {p: (lambda r=runner: r(image)) for p, runner in runners.items()}
        times = alternate_ms(calls)
        return {p: Latency(ms, "host", "median of alternated runs") for p, ms in times.items()}
    estimates = search.json("estimate.json")["student"]
    found = {}
    for precision in runners:
        e = estimates[precision]
        state = "validated" if e["validated"] else "unvalidated"
        note = f"{e['low_ms']:.3g} to {e['high_ms']:.3g} ms, {state} latency model"
        found[precision] = Latency(float(e["ms"]), "predicted", note)
    return found


def alternate_ms(
    calls: Mapping[str, Callable[[], object]],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median milliseconds of each call, the calls taking turns in an order that rotates."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for call in [*calls.values()] * WARMUP:
        call()
    begin = clock()
    for turn in range(ROUNDS):
        if turn >= MIN_ROUNDS and clock() - begin > SECONDS:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            calls[name]()
            times[name].append(1000 * (clock() - start))
    return {name: median(values) for name, values in times.items()}


def _typical(photo: Photo, preprocess: Preprocess, shape: Sequence[int]) -> Floats:
    """A real photo's values at the typical shape, repeated or cut where the sizes differ."""
    image = preprocess(photo.pixels(preprocess.channels))
    pad = [(0, max(0, want - have)) for want, have in zip(shape, image.shape, strict=True)]
    padded = np.pad(image, pad, mode="wrap")
    return np.ascontiguousarray(padded[tuple(slice(size) for size in shape)])


def _rtx(
    paths: Mapping[str, Path], profile: tuple[list[int], list[int], list[int]]
) -> list[dict[str, Any]]:
    """The compile check of what ships: fp32 and int8 (fp16 is the fp32 graph with casts)."""
    return [
        {"precision": precision, **found}
        for precision in ("fp32", "int8")
        if precision in paths
        for found in compile_check(paths[precision], profile=profile)
    ]


def _meta(record: Mapping[str, Any]) -> dict[str, Any]:
    checks = record["rtx_compile_check"]
    counts = {
        name: sum(check["ok"] is value for check in checks)
        for name, value in (("passed", True), ("failed", False), ("skipped", None))
    }
    return {
        "precision": record["precision"],
        "basis": record["basis"],
        "why": record["why"],
        "rtx_compile_check": counts,
    }
