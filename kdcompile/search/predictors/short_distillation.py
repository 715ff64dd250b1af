"""Short distillation of the finalists, each from its assembled or inherited start.

What it then is on the validation images corrects what was expected of it, and by the same rule
what is expected of students that were not distilled.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.config.deploy import Quantize
from kdcompile.config.spec import Spec, Teacher
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.sources import source_key
from kdcompile.core.store import Store, digest
from kdcompile.core.user_code import factory_sources
from kdcompile.data.images import ImageStore
from kdcompile.data.splits import load_splits, splits_digest
from kdcompile.distill.start import start_student
from kdcompile.distill.train import Trainer
from kdcompile.distill.training_context import training_device
from kdcompile.models.factory import load_teacher, load_weights, write_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.predictors.assemble import WEIGHTS, assemble, start_key
from kdcompile.search.predictors.block_data import BlockContext
from kdcompile.search.predictors.sensitivity import ExpectedLoss, paired_increase, validation_errors
from kdcompile.search.predictors.worker_pool import evaluate_all
from kdcompile.tasks.task import preprocess_of, task_of

log = logging.getLogger("kdcompile")
Floats = NDArray[np.float64]
START_FIELDS = {"init", "importance", "crops"}
FACTOR_SD, EXPONENT_SD = 2.0, 0.25  # priors of the correction, of logarithms
STUDENT_SD = 0.3  # log deviation of a student about the line, before any is known
LEAST_LEFT = 0.01  # of an expected increase: none shown on few images is not none at all
MOST_VARIANCE = 2.0
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
    context: BlockContext, architectures: Sequence[Mapping[str, Any]], steps: int, jobs: int
) -> list[Finalist]:
    """Distil each for so many steps by the spec's recipe, in parallel processes; stage `finalist`.

    Args:
        ground: the training data; its spec needs the sections of stage `distill`.
        architectures: they start by `student.init`; a `staged` one inherits its trained blocks.
        steps: optimizer steps, over all stages of the recipe.
        jobs: processes.

    Returns:
        In this order, without those whose training broke down.

    Raises:
        KDError: those of `assemble`, of `start_student` and of the trainer; `loss-nonfinite` only
            where no training came to its end.
    """
    function = partial(_finalist_or_error, context, steps)
    made = evaluate_all(function, architectures, jobs, "finalists")
    errors = [one for one in made if isinstance(one, KDError)]
    if len(errors) == len(made) and errors:
        raise errors[0]
    for error in errors:
        log.warning("search: a finalist is left out: %s", error.message)
    return [one for one in made if not isinstance(one, KDError)]


def _finalist_or_error(
    context: BlockContext, steps: int, architecture: Mapping[str, Any]
) -> Finalist | KDError:
    """Distil one finalist; one that cannot be trained does not end the search.

    A result is read from the store where it is there; a stopped training goes on where it was.
    """
    store = Store(context.root)
    key = _key(context, steps, architecture, store)

    def build(folder: Path) -> Mapping[str, Any]:
        return _build(context, steps, architecture, store.work("finalist", key), folder)

    try:
        entry = store.make("finalist", key, build)
    except KDError as error:
        if error.code != DIVERGED:
            raise
        return error
    store.drop_work("finalist", key)
    path = entry.path / "student.safetensors"
    return Finalist(architecture=architecture, path=path, **entry.meta)


def shorten_training(spec: Spec, steps: int) -> Spec:
    """The spec whose training is `steps` long, its stages in their proportions, in float."""
    options = spec.distill.model_copy(
        update={"steps": steps, "epochs": None, "minutes": None, "stages": _shares(spec)}
    )
    return spec.model_copy(update={"distill": options, "quantize": Quantize()}).at(spec.path)


def _shares(spec: Spec) -> list[Any]:
    """The recipe's stages by their shares of the length."""
    stages = spec.distill.stages
    if not stages or stages[0].share is not None:
        return list(stages)
    total = sum(stage.steps or 0 for stage in stages)
    return [
        stage.model_copy(update={"share": (stage.steps or 0) / total, "steps": None})
        for stage in stages
    ]


def _key(context: BlockContext, steps: int, architecture: Mapping[str, Any], store: Store) -> str:
    spec = context.spec
    return digest(
        {
            "start": start_key(context, architecture, store),
            "init": spec.student.model_dump(mode="json", include=START_FIELDS),
            "steps": steps,
            "distill": spec.distill.model_dump(mode="json"),
            "teachers": [_content(teacher, spec, store) for teacher in spec.teachers],
            "splits": splits_digest(spec.data, spec.folder, store.hasher)["val"],
            "export": spec.export.profile,
            "sigma": spec.data.sigma,
            "source": source_key(__name__, store.hasher),
        }
    )


def _content(teacher: Teacher, spec: Spec, store: Store) -> list[str]:
    """What a further teacher is: its factory, the source of that, its weights."""
    sources = sorted(factory_sources(teacher.model, spec.folder))
    return [teacher.model, *(store.hasher.file(path) for path in (*sources, teacher.weights))]


def _build(
    context: BlockContext, steps: int, architecture: Mapping[str, Any], work: Path, folder: Path
) -> Mapping[str, Any]:
    spec = shorten_training(context.spec, steps)
    task, splits = task_of(spec), load_splits(spec.data, spec.folder)
    teacher = load_teacher(spec)
    whole = validation_errors(teacher, spec)
    student = student_from_architecture(teacher, architecture, spec.folder)
    channels = preprocess_of(spec).channels
    images = ImageStore(splits.train, channels, training_device())
    if architecture["family"] == "staged" and spec.student.init == "inherit":
        load_weights(student, assemble(context, architecture).file(WEIGHTS))
    else:
        start_student(spec, teacher, student, architecture, images)
    value = task.metric(whole)
    trainer = Trainer(
        spec, teacher, student, splits.train, splits.val, work, teacher_value=value, store=images
    )
    state = trainer.run()
    trainer.setting.ema.load_state_dict(state.best)
    increase, sd = paired_increase(
        task, whole, validation_errors(trainer.setting.ema, spec), spec.seed
    )
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


@dataclass(frozen=True, eq=False)
class LossCorrection:
    """A power law from expected to measured increases, known up to its deviations.

    mean: log factor and exponent [2]; covariance [2, 2] of them; noise: deviation of a student's
    logarithm about the line.
    """

    mean: Floats
    covariance: Floats
    noise: float

    def __call__(self, expected: ExpectedLoss) -> ExpectedLoss:
        """The corrected expectation: median, and the deviation of line and student together."""
        if expected.mean <= 0 or not self.noise:
            return expected
        at = np.array([1.0, np.log(expected.mean)])
        line = float(at @ self.covariance @ at)
        own = min(1.0, float(self.mean[1]) * expected.sd / expected.mean) ** 2
        median = float(np.exp(at @ self.mean))
        variance = min(MOST_VARIANCE, line + own + self.noise**2)
        return ExpectedLoss(median, median * float(np.sqrt(np.expm1(variance))))


def fit_correction(
    expected: Sequence[ExpectedLoss], measured: Sequence[Finalist]
) -> LossCorrection:
    """The correction that short distillations of some students show.

    Bayesian linear regression of logarithms about the identity (factor 1, exponent 1): training
    repairs a share of any damage, so what is left is a power of it and never less than none. With
    few finalists the exponent stays near 1.

    Args:
        expected: what was expected of each finalist.
        measured: what it became; an increase within its own error counts as that error, and none
            at all as `LEAST_LEFT` of what was expected.
    """
    pairs = [(e, m) for e, m in zip(expected, measured, strict=True) if e.mean > 0]
    if not pairs:
        return LossCorrection(np.array([0.0, 1.0]), np.zeros((2, 2)), 0.0)
    became = np.array([max(m.increase, m.increase_sd, LEAST_LEFT * e.mean) for e, m in pairs])
    x = np.array([[1.0, np.log(e.mean)] for e, _ in pairs])
    y = np.log(became)
    own = np.array([m.increase_sd for _, m in pairs]) / became
    prior, start = np.diag([FACTOR_SD**-2, EXPONENT_SD**-2]), np.array([0.0, 1.0])
    noise = STUDENT_SD**2
    for _ in range(20):
        weight = 1 / (noise + own**2)
        covariance = np.linalg.inv(x.T @ (weight[:, None] * x) + prior)
        mean = covariance @ (x.T @ (weight * y) + prior @ start)
        used = float(np.trace(x @ covariance @ (x * weight[:, None]).T))
        squares = np.square(y - x @ mean) - own**2
        left = max(0.0, len(y) - used)
        noise = max(1e-6, (float(squares.sum()) + STUDENT_SD**2) / (left + 1))
    return LossCorrection(mean, covariance, float(np.sqrt(noise)))
