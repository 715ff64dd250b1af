"""Stage `distill`: trained student weights and how they came about."""

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kdcompile.config.spec import Spec
from kdcompile.config.step import Step
from kdcompile.core.distributed import made_by_main, processes
from kdcompile.core.files import write_json, write_text
from kdcompile.core.store import Artifact, Store
from kdcompile.data.photo import Photo
from kdcompile.data.pool import load_pool
from kdcompile.data.rows import store_of
from kdcompile.data.splits import Splits, load_splits
from kdcompile.distill.answers import answer
from kdcompile.distill.checks import output_stride, refuse_labels
from kdcompile.distill.findings import flips, start_findings
from kdcompile.distill.preparation import preparation_findings, settle
from kdcompile.distill.qad_modules import plain_weights
from kdcompile.distill.short_run import ShortRuns
from kdcompile.distill.start import kept_start
from kdcompile.distill.train import Trainer
from kdcompile.distill.training_context import training_device
from kdcompile.distill.unlabelled import joins_training, uses_pool
from kdcompile.kernels import forget, ran
from kdcompile.models.factory import load_teacher, write_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.targets import Target
from kdcompile.tasks.task import preprocess_of, task_of

log = logging.getLogger("kdcompile")
INITIAL = "initial.safetensors"
ASSEMBLED = "initial.safetensors"  # of a search, whose student is staged
QAD = "qad.json"
TRIED = "tried"  # short trainings, in the work folder


def run(step: Step, store: Store, target: Target) -> Artifact:
    """Train; `student.safetensors`, `architecture.json`, `metrics.jsonl`, `result.json`.

    With `quantize.qad` also `qad.json`: the scales that the student was trained with.

    Of several processes all train and the first one makes the artifact.

    Raises:
        KDError: what the trainer raises; `store-not-shared`.
    """
    work, place = store.work(step.stage, step.key), processes()
    if not place.is_main:
        if place.told(True):
            trainer, _, _, _ = make_trainer(step, work)
            trainer.run()
            trainer.conclude()
        place.barrier()
        return made_by_main(store, step.stage, step.key)
    trained = False

    def build(folder: Path) -> Mapping[str, Any]:
        nonlocal trained
        trained = place.told(True)
        return _build(step, work, folder)

    artifact = store.make(step.stage, step.key, build)
    if not trained:  # another build has made it meanwhile
        place.told(False)
    place.barrier()
    store.drop_work(step.stage, step.key)
    return artifact


def _build(step: Step, work: Path, folder: Path) -> Mapping[str, Any]:
    forget()  # the report is of this training
    trainer, splits, inherited, tried = make_trainer(step, work)
    state = trainer.run()
    train_value, warnings = trainer.conclude()
    fitted = trainer.calibrate_output()
    architecture = step.inputs["search"].json("architecture.json")
    metadata = {"architecture": json.dumps(architecture)}
    write_weights(folder / "student.safetensors", plain_weights(state.best), metadata)
    if trainer.qad is not None:
        write_json(folder / QAD, trainer.qad.record(splits.train))
    lines = "".join(json.dumps(row) + "\n" for row in state.metrics)
    write_text(folder / "metrics.jsonl", lines)
    write_json(folder / "architecture.json", architecture)
    task, first, device = task_of(step.spec), state.metrics[0], trainer.device
    metric, is_refresh = task.metric.name, step.spec.student.init == "file"
    result = {
        **{f"val_{name}": value for name, value in state.scores.items()},
        "metric": metric,
        "initial": {name: first[name] for name in first if name.startswith("val_")},
        f"train_{metric}": train_value,
        "best_step": state.best_step,
        "steps": state.step,
        "recipe": trainer.recipe,
        "taps": next((stage["taps"] for stage in state.stages.values()), []),
        "stages": state.stages,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processes": processes().world,
        "seconds": state.seconds,
        "steps_per_s": state.step / state.seconds if state.seconds else None,
        "n_train": len(splits.train),
        "n_unlabelled": trainer.n_unlabelled,
        "losses": state.losses | ran(),
        "inherit": inherited,
        **({"flips": flips(task, state, splits.val)} if is_refresh else {}),
        "qad": None if trainer.qad is None else trainer.qad.describe(),
        "output_calibration": None if fitted is None else fitted.to_json(),
        **tried,
        "warnings": [
            *start_findings(task.metric, inherited),
            *preparation_findings(metric, tried),
            *warnings,
        ],
        "dropped": splits.dropped,
    }
    write_json(folder / "result.json", result)
    return result


def make_trainer(
    step: Step, work: Path
) -> tuple[Trainer, Splits, dict[str, Any] | None, dict[str, Any]]:
    """The trainer of a step, at rest; the data; what inheriting the student gave; what was tried
    for its rate and its recipe.
    """
    spec = step.spec
    architecture = step.inputs["search"].json("architecture.json")
    splits = load_splits(spec.data, spec.folder)
    pool = unlabelled_photos(spec, splits)
    if joins_training(spec):
        splits, pool = replace(splits, train=[*splits.train, *pool]), []
    teacher = load_teacher(spec)
    student = student_from_architecture(teacher, architecture, spec.folder)
    answer(spec, teacher, [*splits.train, *splits.val])
    store = store_of(splits.train, preprocess_of(spec), training_device())
    output_stride(teacher, student, spec)  # refused before anything is worked out
    refuse_labels(student, spec, splits)
    start = work / INITIAL
    searched = step.inputs["search"]
    initial = searched.file(ASSEMBLED) if ASSEMBLED in searched.files else None
    kept_start(start, spec, teacher, student, architecture, store, initial, splits.val)
    metric = task_of(spec).metric.name
    # what the teacher is worth follows from what this step's key covers
    judged = step.inputs["teacher"].json("teacher.json")
    value = judged[f"val_{metric}"] if not judged["n_new"] else None  # else of other photos
    inherited = json.loads(start.with_suffix(".json").read_text())
    holds = spec.student.init == "file" or inherited is not None or initial is not None
    runs = ShortRuns(teacher, student, splits.train, splits.val, work / TRIED, store, pool)
    spec, tried = settle(spec, runs, holds)
    trainer = Trainer(
        spec, teacher, student, splits.train, splits.val, work, teacher_value=value, store=store,
        pool=pool,
    )  # fmt: skip
    return trainer, splits, inherited, tried


def unlabelled_photos(spec: Spec, splits: Splits) -> list[Photo]:
    """The photos without labels that the training reads; of a copy of a split's photo none.

    Raises:
        KDError: those of `load_pool`.
    """
    if not uses_pool(spec):
        return []
    found = load_pool(spec.data, spec.folder, splits)
    log.info(
        "distill: %d images without labels; %d that a split holds are left out",
        len(found.photos), len(found.left_out),
    )  # fmt: skip
    return found.photos
