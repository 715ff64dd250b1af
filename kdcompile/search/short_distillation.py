"""Short distillation of a search's finalists, and the errors of networks on validation images."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from kdcompile.config.spec import Spec, Teacher
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.progress import counted
from kdcompile.core.sources import source_key
from kdcompile.core.store import Store, digest
from kdcompile.core.user_code import factory_sources
from kdcompile.core.weight_files import files_of
from kdcompile.data.rows import store_of
from kdcompile.data.splits import load_splits, splits_digest
from kdcompile.distill.evaluate import predict
from kdcompile.distill.shortened import paired_increase, shorten_training
from kdcompile.distill.start import start_student
from kdcompile.distill.train import Trainer
from kdcompile.distill.training_context import training_device
from kdcompile.models.factory import load_teacher, write_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.tasks.task import Floats, preprocess_of, task_of

log = logging.getLogger("kdcompile")
LIBRARIES = ("torch", "numpy", "pillow")
DATA_FIELDS = {"format", "mean", "std", "sigma"}
START_FIELDS = {"init", "importance", "crops"}
DIVERGED = "loss-nonfinite"


@dataclass(frozen=True)
class Finalist:
    """What a short distillation made of a student.

    increase: how much worse than the teacher its best validation metric is, in the metric's unit;
    increase_sd: standard error of that over the validation images (a paired bootstrap); value: the
    metric; start: the metric before the first step; steps, seconds: of the training; path: its
    best weights.
    """

    architecture: Mapping[str, Any]
    increase: float
    increase_sd: float
    value: float
    start: float
    steps: int
    seconds: float
    path: Path


def distil(
    spec: Spec, store: Store, architectures: Sequence[Mapping[str, Any]], steps: int
) -> list[Finalist]:
    """Distil each for so many steps by the spec's recipe; stage `finalist` of the store.

    A result is read from the store where it is there; a stopped training goes on where it was.

    Args:
        spec: the sections of stage `distill`.
        store: where results are kept.
        architectures: they start by `student.init`; a `staged` one, which shares no layer with the
            teacher, starts at random.
        steps: optimizer steps, over all stages of the recipe.

    Returns:
        In this order, without those whose training diverged.

    Raises:
        KDError: those of `start_student` and of the trainer; `loss-nonfinite` only where every
            training diverged.
    """
    made: list[Finalist] = []
    errors: list[KDError] = []
    for architecture in counted(architectures, len(architectures), "search", "finalists"):
        try:
            made.append(_finalist(spec, store, architecture, steps))
        except KDError as error:
            if error.code != DIVERGED:
                raise
            errors.append(error)
            log.warning("search: a finalist is left out: %s", error.message)
    if errors and not made:
        raise errors[0]
    return made


def _finalist(spec: Spec, store: Store, architecture: Mapping[str, Any], steps: int) -> Finalist:
    key = _key(spec, steps, architecture, store)

    def build(folder: Path) -> Mapping[str, Any]:
        return _build(spec, steps, architecture, store.work("finalist", key), folder)

    entry = store.make("finalist", key, build)
    store.drop_work("finalist", key)
    path = entry.path / "student.safetensors"
    return Finalist(architecture=architecture, path=path, **entry.meta)


def _key(spec: Spec, steps: int, architecture: Mapping[str, Any], store: Store) -> str:
    """All that a finalist depends on: no budget and no target."""
    splits = splits_digest(spec.data, spec.folder, store.hasher)
    return digest(
        {
            "seed": spec.seed,
            "task": spec.task.kind,
            "architecture": architecture,
            "steps": steps,
            "init": spec.student.model_dump(mode="json", include=START_FIELDS),
            "distill": spec.distill.model_dump(mode="json"),
            "teachers": [_content(t, spec, store) for t in (spec.teacher, *spec.teachers)],
            "data": spec.data.model_dump(mode="json", include=DATA_FIELDS),
            "splits": [splits["train"], splits["val"]],
            "export": spec.export.profile,
            "source": source_key(__name__),
            "libraries": [metadata.version(name) for name in LIBRARIES],
            "device": training_device().type,
        }
    )


def _content(teacher: Teacher, spec: Spec, store: Store) -> list[str]:
    """What a teacher is: its factory, the source of that, its weights."""
    sources = sorted(factory_sources(teacher.model, spec.folder)) if teacher.model else []
    files = (*sources, *files_of(teacher.file))
    more = [f"{teacher.arguments} {teacher.entry}"] if teacher.arguments or teacher.entry else []
    return [teacher.model, *more, *(store.hasher.file(path) for path in files)]


def _build(
    spec: Spec, steps: int, architecture: Mapping[str, Any], work: Path, folder: Path
) -> Mapping[str, Any]:
    spec = shorten_training(spec, steps)
    task, splits = task_of(spec), load_splits(spec.data, spec.folder)
    teacher = load_teacher(spec)
    whole = validation_errors(teacher, spec)
    student = student_from_architecture(teacher, architecture, spec.folder)
    images = store_of(splits.train, preprocess_of(spec), training_device())
    if architecture["family"] != "staged":
        start_student(spec, teacher, student, architecture, images)
    trainer = Trainer(
        spec, teacher, student, splits.train, splits.val, work,
        teacher_value=task.metric(whole), store=images,
    )  # fmt: skip
    state = trainer.run()
    trainer.setting.ema.load_state_dict(state.best)
    degraded = validation_errors(trainer.setting.ema, spec)
    increase, sd = paired_increase(task, whole, degraded, spec.seed)
    write_weights(
        folder / "student.safetensors",
        state.best,
        {"architecture": json.dumps(architecture, sort_keys=True)},
    )
    record = {
        "increase": increase,
        "increase_sd": sd,
        "value": state.value,
        "start": state.metrics[0][f"val_{task.metric.name}"],
        "steps": state.step,
        "seconds": state.seconds,
    }
    write_json(folder / "result.json", {**record, "architecture": architecture})
    return record


def validation_errors(network: nn.Module, spec: Spec) -> Floats:
    """A network's error on each validation image, as the task defines it, float64 [N].

    Args:
        network: it comes back on its own device.
        spec: its task and its data.
    """
    task, device = task_of(spec), training_device()
    photos = load_splits(spec.data, spec.folder).val
    was_on = next(network.parameters()).device
    predicted = predict(network.to(device), photos, preprocess_of(spec), device, task)
    network.to(was_on)
    return task.errors(predicted, [task.truth(photo) for photo in photos])
