"""Stage `compile`: the precision that ships, its engine or file, and for a board the build kit."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kdcompile.backends.answers import answer_by
from kdcompile.backends.candidate_runner import (
    RUNS_HERE,
    BoardRig,
    HostRig,
    Rig,
    keep_teacher,
    predict_outputs,
    predictions,
)
from kdcompile.backends.choose import Candidate, Limits, choose, judge
from kdcompile.backends.deployed_form import DeployedForm, deployed_form
from kdcompile.backends.engine import at
from kdcompile.backends.mixed import NEEDS, add_mixed
from kdcompile.backends.mixed_residuals import Price
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.backends.parity_inputs import gates_json, write_carried, write_outputs
from kdcompile.backends.tensorrt_rtx_ import compile_check
from kdcompile.bundle import python_sample
from kdcompile.bundle.user_files import code_of
from kdcompile.config.deploy import Profile
from kdcompile.config.gates import fraction
from kdcompile.config.step import Step
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.store import Artifact, Store
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Input, Preprocess
from kdcompile.data.splits import load_splits
from kdcompile.passes.shipped_price import file_estimate
from kdcompile.passes.suppression import write_suppression
from kdcompile.remote.kit import MAX_REFERENCES, write_kit
from kdcompile.targets import Target
from kdcompile.tasks.agreement import LIMIT_DB, pooled_sqnr
from kdcompile.tasks.reference import taught_places
from kdcompile.tasks.task import Task, ports_of, task_of

FILES = {
    "fp32": ("export", "student.onnx"),
    "fp16": ("export", "student_fp16.onnx"),
    "bf16": ("export", "student_bf16.onnx"),
    "int8": ("calibrate", "student_int8.onnx"),
    "fp8": ("calibrate", "student_fp8.onnx"),
}
ALL_WRONG = 1.0  # of an error relative to the teacher's outputs: zeros everywhere
ORIN = ("8.0", "8.6")  # the library's nearest to Orin's 8.7
CHECKED = {  # fp16 is the fp32 graph with casts
    "fp32": ORIN,
    "int8": ORIN,
    "mixed": ORIN,
    "fp8": ("8.9", "12.0"),
}


def run(step: Step, store: Store, target: Target) -> Artifact:
    """Choose the precision on validation; `choice.json`, `model.onnx`, `preprocess.json` as it is
    deployed, and where there is a board `model.engine`, `teacher.engine`, `timing.cache`,
    `engines.json`; and `kit/` or `parity/`.

    Reads the sections quantize, compile, export, gates, data and task, and the artifacts of
    teacher, search, export and calibrate. The test split is not touched.

    Raises:
        KDError: `precision-unsupported`, the target has no such arithmetic; what data, sessions
            and the board's worker raise.
    """
    return store.make(step.stage, step.key, lambda folder: _build(step, target, folder))


def _build(step: Step, target: Target, folder: Path) -> Mapping[str, Any]:
    exported = Preprocess.from_json(step.inputs["export"].json("preprocess.json"))
    with deployed_form(exported, step.spec.export.preprocess) as form:
        write_json(folder / "preprocess.json", form.prepare.to_json())
        return _compiled(step, target, folder, exported, form)


def _compiled(
    step: Step, target: Target, folder: Path, preprocess: Preprocess, form: DeployedForm
) -> Mapping[str, Any]:
    spec, task = step.spec, task_of(step.spec)
    paths = candidate_paths(step, target)
    photos = load_splits(spec.data, spec.folder).val
    answer_by(step.inputs["export"], photos, preprocess, task)
    teacher_metric, limits, known = _limits(step, task, photos)
    with _rig(step, target, form) as rig:
        rig.refused.update(_absent(step, target))
        for precision in _wanted(spec.quantize.precision, paths, step):
            rig.add(precision, paths)
        if "int8" in rig.runners and target.software is not None:
            rig.expect("int8", partial(_price(step, target, form), paths["int8"], "int8"))
        shape = spec.export.profile[1]
        image = _typical(photos[0], form.prepare, shape)
        if spec.quantize.precision in ("auto", "mixed"):
            parts = [photos[i] for i in known], preprocess, task, limits
            calibrated, price = step.inputs["calibrate"], _price(step, target, form)
            add_mixed(rig, paths, calibrated, target, parts, image, shape, folder, price)
        _check_asked(spec.quantize.precision, rig)
        shown = photos, image, preprocess
        candidates, notes = _judge(step, rig, paths["fp32"], shown, task, limits, known)
        choice = choose(candidates, limits.metric, spec.quantize.precision)
        rig.keep(choice.precision, paths, folder)
        if spec.export.nms != "none":
            runs = choice.precision if choice.precision in RUNS_HERE else "fp32"
            proof = form.file(paths[runs]), photos, form.prepare
            write_suppression(folder, proof, task, target, spec.export.profile[1])
        if isinstance(rig, BoardRig):
            keep_teacher(rig, step.inputs["export"], choice.precision, folder)
    reference = open_session(paths["fp32"])
    board = step.board
    record = {
        **asdict(choice),
        "backend": reference.name if board is None else board.backend,
        "backend_version": reference.version if board is None else board.version,
        "board": None if board is None else {"label": board.label, **board.facts},
        "target_backend": target.runtime,
        "target_backend_version": target.software,
        "metric": limits.metric.name,
        "teacher_metric": teacher_metric,
        "limit": limits.limit,
        "n_val": len(photos),
        "candidates": [asdict(c) | {"latency": notes[c.precision]} for c in candidates],
        "refused": rig.refused,
        "rtx_compile_check": _rtx(paths, form, spec.export.profile),
    }
    write_json(folder / "choice.json", record)
    if target.is_foreign:
        _kit(step, target, folder, paths, (photos, form), choice.precision)
    else:
        fp32, prepare = form.file(paths["fp32"]), form.prepare
        write_carried(folder, fp32, photos, prepare, gates_json(spec.gates, task))
        write_outputs(folder, fp32, choice.precision, prepare)
    return _meta(record)


def _price(step: Step, target: Target, form: DeployedForm) -> Price:
    """Predicts the latency of a file with pairs of Q and DQ at a precision."""
    known = step.inputs["search"].json("estimate.json")["student"]
    return partial(file_estimate, known=known, form=form, spec=step.spec, target=target)


@contextmanager
def _rig(step: Step, target: Target, form: DeployedForm) -> Iterator[Rig]:
    """The place where the candidates run."""
    if step.board is None:
        yield HostRig(target, step.inputs["search"].json("estimate.json")["student"], form)
        return
    with at(step.board, ports_of(step.spec)) as place:
        yield BoardRig(place, step.board, step.spec, target, form)


def _wanted(asked: str, paths: Mapping[str, Path], step: Step) -> list[str]:
    """The precisions to make ready: all, but no engine that the spec does not ask for."""
    if step.board is None or asked == "auto":
        return list(paths)
    return list(NEEDS) if asked == "mixed" else [asked]


def _check_asked(asked: str, rig: Rig) -> None:
    if asked in rig.runners or (asked == "auto" and rig.runners):
        return
    reasons = "; ".join(f"{precision}: {why}" for precision, why in rig.refused.items())
    raise KDError(
        "precision-unsupported",
        f"{asked} cannot be built: {reasons}",
        where="[quantize] precision",
        fix="--set quantize.precision=auto, or another that kdcompile doctor --via shows",
    )


def _judge(
    step: Step,
    rig: Rig,
    fp32: Path,
    shown: tuple[Sequence[Photo], Input, Preprocess],
    task: Task,
    limits: Limits,
    known: Sequence[int],
) -> tuple[list[Candidate], dict[str, str]]:
    """Every candidate on the validation photos, and where its latency is from.

    As it is deployed, against the exported fp32 network.
    """
    photos, image, preprocess = shown
    latencies, prepare = rig.latencies(image), rig.form.prepare
    trained, frames = predict_outputs(open_session(fp32), photos, preprocess)
    outputs = {p: predict_outputs(runner, photos, prepare)[0] for p, runner in rig.runners.items()}
    sqnr = {p: pooled_sqnr(trained, found) for p, found in outputs.items()}
    lie, true = [frames[i] for i in known], [task.truth(photos[i]) for i in known]
    if "fp16" in sqnr and step.board is None:
        sqnr["fp16"] = _half_sqnr(step.inputs["export"])
    candidates = [
        judge(
            precision,
            latencies[precision].ms,
            latencies[precision].evidence,
            limits.metric(task.errors(predictions(task, [found[i] for i in known], lie), true)),
            sqnr[precision],
            limits,
        )
        for precision, found in outputs.items()
    ]
    return candidates, {p: latency.note for p, latency in latencies.items()}


def _half_sqnr(export: Artifact) -> float:
    """Export's agreement of fp16 with fp32, dB, every layer rounded to half.

    A CPU computes an fp16 file in fp32, so its outputs would show no difference; an overflow is no
    agreement at all.
    """
    half = export.json("parity.json")["student_fp16"]
    return float(half["sqnr_db"]) if half["finite"] else -LIMIT_DB


def _limits(step: Step, task: Task, photos: Sequence[Photo]) -> tuple[float, Limits, list[int]]:
    """The teacher's metric, what the gates allow beside it, and on which photos, by place."""
    gates, judged = step.spec.gates, step.inputs["teacher"].json("teacher.json")
    metric = task.selection_metric(gates.accuracy.metric)
    teacher = float(judged[f"val_{metric.name}"])
    limit = metric.limit(teacher, fraction(gates.accuracy.max_increase))
    if metric.absolute and task.find_metric(gates.accuracy.metric) is not metric:
        limit = ALL_WRONG  # what another metric may be is no limit of this one: `verify` judges
    known = taught_places(task, photos, judged["output"][0])
    return teacher, Limits(metric, limit, gates.parity.min_sqnr_db), known


def _kit(
    step: Step,
    target: Target,
    folder: Path,
    paths: Mapping[str, Path],
    shown: tuple[Sequence[Photo], DeployedForm],
    predicted: str,
) -> None:
    """The kit with the first validation photos as its reference, run by ONNX Runtime."""
    photos, form = shown
    images = [form.prepare.input_of(photo) for photo in photos[:MAX_REFERENCES]]
    carried = {p: form.file(path) for p, path in paths.items() if p in RUNS_HERE}
    runners = {p: open_session(path, as_written=True) for p, path in carried.items()}
    outputs = {p: [runner(image) for image in images] for p, runner in runners.items()}
    task = task_of(step.spec)
    write_kit(
        folder,
        target,
        carried,
        step.inputs["calibrate"].file("calibration.json"),
        folder / "preprocess.json",
        (gates_json(step.spec.gates, task), step.spec.gates.board_limits()),
        (images, outputs),
        task,
        profile=form.profile(step.spec.export.profile),
        predicted=predicted,
        settings=step.spec.compile.model_dump(),
        inputs=ports_of(step.spec),
        teacher=form.file(step.inputs["export"].file("teacher.onnx")),
        sample=python_sample.text(task.like),
        code=code_of(step.spec.task.decode or "", step.spec.folder),
    )


def candidate_paths(step: Step, target: Target) -> dict[str, Path]:
    """The ONNX of each precision that is built for the target.

    Raises:
        KDError: `precision-unsupported`.
    """
    known = [
        precision
        for precision, (stage, name) in FILES.items()
        if precision in target.precisions and name in step.inputs[stage].files
    ]
    asked = step.spec.quantize.precision
    possible = known + ["mixed"] * all(precision in known for precision in NEEDS)
    if asked not in ("auto", *possible):
        why = _absent(step, target).get(asked, f"{target.name} does not have it")
        raise KDError(
            "precision-unsupported",
            f"there is no {asked} here: {why}",
            where="[quantize] precision",
            fix=f"--set quantize.precision=auto, or one of {', '.join(possible)}",
        )
    return {p: step.inputs[FILES[p][0]].file(FILES[p][1]) for p in known}


def _absent(step: Step, target: Target) -> dict[str, str]:
    """Why the network has no file in a precision that the target has."""
    half = step.inputs["export"].json("parity.json")["student_fp16"]
    reasons = {"fp16": half.get("why", "it was not exported")}
    return {
        precision: reasons.get(precision, f"not written for TensorRT {target.software}")
        for precision, (stage, name) in FILES.items()
        if precision in target.precisions and name not in step.inputs[stage].files
        if step.spec.quantize.precision in ("auto", precision)
    }


def _typical(photo: Photo, preprocess: Preprocess, exported: Sequence[int]) -> Input:
    """A real photo's values at the typical shape, repeated or cut where the sizes differ."""
    image = preprocess.input_of(photo)
    if image.ndim == 2:  # a row has one length
        return image
    shape = preprocess.input_shape(exported)
    pad = [(0, max(0, want - have)) for want, have in zip(shape, image.shape, strict=True)]
    padded = np.pad(image, pad, mode="wrap")
    return np.ascontiguousarray(padded[tuple(slice(size) for size in shape)])


def _rtx(paths: Mapping[str, Path], form: DeployedForm, exported: Profile) -> list[dict[str, Any]]:
    """The compile check of every kind of network that may ship."""
    return [
        {"precision": precision, **found}
        for precision, capabilities in CHECKED.items()
        if precision in paths
        for found in compile_check(
            form.file(paths[precision]), capabilities, form.profile(exported)
        )
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
