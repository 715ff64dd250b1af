"""Stage `teacher`: validate the teacher, and refuse one that is no better than a constant."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdcompile.config.spec import Spec
from kdcompile.config.step import Step
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.store import Artifact, Store
from kdcompile.data.photo import Photo
from kdcompile.data.splits import Splits, load_splits
from kdcompile.distill.answers import answer
from kdcompile.distill.evaluate import predict
from kdcompile.distill.training_context import training_device
from kdcompile.models.factory import load_teacher
from kdcompile.models.rows import ports_of, refused
from kdcompile.targets import Target
from kdcompile.tasks.reference import taught_places
from kdcompile.tasks.task import Task, preprocess_of, task_of

log = logging.getLogger("kdcompile")


def run(step: Step, store: Store, target: Target) -> Artifact:
    """The teacher's validation metrics; `teacher.json`.

    Raises:
        KDError: `teacher-useless`, when a constant predictor does as well; `teacher-output`,
            `teacher-forward`, `teacher-unjudged` or `labels-invalid`.
    """
    return store.make(step.stage, step.key, lambda folder: _build(step.spec, folder))


def _build(spec: Spec, folder: Path) -> Mapping[str, Any]:
    task = task_of(spec)
    splits = load_splits(spec.data, spec.folder)
    device = training_device()
    model = load_teacher(spec).to(device)
    shape = output_shape(model, spec.export.profile[1], device, task)
    train, val = taught(task, shape, splits, spec)
    answer(spec, model, val)
    for photo in train:
        task.check_photo(photo, task.outputs_of(shape))
    known, true = ([task.truth(photo) for photo in photos] for photos in (train or val, val))
    log.info("teacher: %d validation images", len(val))
    predicted = predict(model, val, preprocess_of(spec), device, task)
    if not np.isfinite(predicted).all():
        raise KDError(
            "teacher-output",
            "the teacher's output is not finite on the validation images",
            where=spec.teacher.named,
            fix="check data.mean and data.std against the teacher's training",
        )
    found = task.scores(predicted, true)
    constant = task.constant_scores(known, predicted, true)
    _refuse_useless(task, found, constant, spec)
    errors = np.abs(task.errors(predicted, true))
    result = {
        **{f"val_{name}": value for name, value in found.items()},
        **{f"constant_{name}": value for name, value in constant.items()},
        "metric": task.metric.name,
        "val_abs_error_std": float(errors.std()),
        "val_squared_error_std": float(np.square(errors).std()),
        "n_val": len(true),
        "n_new": len(splits.val) - len(true),
        "n_train": len(splits.train),
        "n_test": len(splits.test),
        "params": sum(p.numel() for p in model.parameters()),
        "output": list(shape[1:]),
        "classes": None if splits.classes is None else list(splits.classes),
        "dropped": splits.dropped,
    }
    write_json(folder / "teacher.json", result)
    return result


def taught(
    task: Task, shape: tuple[int, ...], splits: Splits, spec: Spec
) -> tuple[list[Photo], list[Photo]]:
    """The training and validation photos whose labels the teacher has an output for.

    A student of the user's own may have more classes: its labels are looked at by `distill`.

    Raises:
        KDError: `labels-invalid` or `teacher-unjudged`.
    """
    found = []
    for photos in (splits.train, splits.val):
        if ":" in spec.student.family:
            found.append([photos[i] for i in taught_places(task, photos, shape[1])])
            continue
        labels = [task.truth(photo) for photo in photos]
        problem = task.check_labels(labels, task.outputs_of(shape), splits.classes)
        if problem is not None:
            raise KDError(
                "labels-invalid",
                problem,
                where=f"[data], for {task.kind}",
                fix="correct [task] kind, the labels, or the teacher's number of outputs",
            )
        found.append(photos)
    train, val = found
    if not val:
        raise KDError(
            "teacher-unjudged",
            f"no validation image is of one of the teacher's {shape[1]} classes",
            where="[data] val",
            fix="add images of its classes there: they show what the student keeps",
        )
    return train, val


def _refuse_useless(
    task: Task, found: Mapping[str, float], constant: Mapping[str, float], spec: Spec
) -> None:
    metric = task.metric
    value, least = found[metric.name], constant[metric.name]
    if metric.is_better(value, least):
        return
    raise KDError(
        "teacher-useless",
        f"validation {metric.name} {metric.text(value)}, "
        f"a constant predictor has {metric.text(least)}",
        where=str(spec.teacher.file),
        fix="train the teacher further, or check data.mean, data.std and the annotations",
    )


def output_shape(
    model: torch.nn.Module, shape: list[int], device: torch.device, task: Task
) -> tuple[int, ...]:
    """The shape of the teacher's output for an image [1, C, H, W] or a row, as its task needs it.

    Raises:
        KDError: `teacher-forward`, `teacher-output`, `network-forward` or `network-output`.
    """
    ports = ports_of(model)
    if ports is not None:
        shape = [1, ports.width]
    try:
        with torch.no_grad():
            output = model(torch.zeros(*shape, device=device))
    except KDError:
        raise
    except Exception as error:  # whatever the user's forward raises
        if ports is not None:
            raise refused(ports, error) from error
        raise KDError(
            "teacher-forward",
            f"the teacher fails on an input of {shape}: {str(error).strip().splitlines()[0]}",
            where="[teacher] model and [export] shape",
            fix="give export.shape as the network takes it, [1, C, H, W]",
        ) from error
    is_tensor = isinstance(output, torch.Tensor)
    found = tuple(output.shape) if is_tensor else type(output).__name__
    problem = task.check_output(tuple(output.shape)) if is_tensor else "one tensor is needed"
    if problem is not None:
        raise KDError(
            "teacher-output",
            f"the teacher gives {found}; {problem}",
            where="[teacher] model and [task] kind",
            fix=f"return the {task.output} alone from forward()",
        )
    return tuple(output.shape)
