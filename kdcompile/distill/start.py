"""Start of the student: inherited from the teacher, from a file, or at random."""

import copy
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kdcompile.config.spec import Spec
from kdcompile.core.distributed import processes
from kdcompile.core.errors import KDError
from kdcompile.core.files import is_sealed, seal, write_json
from kdcompile.data.augment import Batch
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.rows import sampler_of
from kdcompile.data.splits import evenly
from kdcompile.distill.checks import Pulse, class_counts, dead, output_stride
from kdcompile.distill.evaluate import predict
from kdcompile.distill.findings import start_findings
from kdcompile.distill.inherit import inherit
from kdcompile.distill.objective import Objective, make_objective, objective_of
from kdcompile.distill.schedule import stage_plans
from kdcompile.models.factory import load_weights, write_weights
from kdcompile.models.rows import runs_alone
from kdcompile.tasks.task import preprocess_of, task_of

log = logging.getLogger("kdcompile")
CROPS_AT_ONCE = 4
MOST_IMAGES = 64  # of validation, that a start is evaluated on
FIXES = {
    "inherit": "a ReLU behind the teacher's output is the usual cause: let the factory leave it "
    'out, or set student.init = "random"',
    "random": "set another seed; where a ReLU ends the network, leave it out of the factory",
    "file": "name weights of a network whose output varies in student.weights",
}


def kept_start(
    path: Path,
    spec: Spec,
    teacher: nn.Module,
    student: nn.Module,
    architecture: Mapping[str, Any],
    store: ImageStore,
    initial: Path | None = None,
    val: Sequence[Photo] = (),
) -> None:
    """`checked_start`, made once: kept at `path`, and what it found beside it as JSON.

    Of several processes the first one makes it and the others read it.
    """
    place = processes()
    files = (path, path.with_suffix(".json"))
    if place.is_main and not all(is_sealed(file) for file in files):
        report = checked_start(spec, teacher, student, architecture, store, initial, val)
        write_json(files[1], report)
        write_weights(path, student.state_dict())
        for file in files:
            seal(file)
    place.barrier()
    load_weights(student.cpu(), path)


def checked_start(
    spec: Spec,
    teacher: nn.Module,
    student: nn.Module,
    architecture: Mapping[str, Any],
    store: ImageStore,
    initial: Path | None = None,
    val: Sequence[Photo] = (),
) -> dict[str, Any] | None:
    """`start_student`, and that training can go on from there.

    What was inherited and is dead, or worse on validation photos than a constant, is inherited
    again with the other importance and from other crops; the best of these starts is taken. A start
    that is worse than a constant and not dead is no error: training may repair it.

    Args:
        spec, teacher, student, architecture, store, initial: of `start_student`.
        val: validation photos; without any, inherited starts are not compared with a constant.

    Returns:
        What inheriting found, with `validation` (photos, metric, start, constant) and, where there
        was more than one, `attempts`.

    Raises:
        KDError: `student-dead`; those of `start_student`.
    """
    shown = evenly(val, MOST_IMAGES)
    fresh = copy.deepcopy(student.state_dict())
    starts: list[_Start] = []
    for own in _attempts(spec, initial):
        student.load_state_dict(fresh)
        report = start_student(own, teacher, student, architecture, store, initial)
        networks = (teacher.to(store.device), student.to(store.device))
        starts.append(_evaluated(own, *networks, report, store, shown))
        if starts[-1].is_good:
            break
    best = min(starts, key=lambda start: start.rank)
    if best.pulse is not None:
        raise KDError(
            "student-dead",
            f"the student cannot learn from where it starts: {best.pulse}",
            where="[student] init",
            fix=FIXES[spec.student.init],
        )
    student.load_state_dict(best.state)
    if best.report is None:
        return None
    more = [start.attempt for start in starts] if len(starts) > 1 else None
    found = best.report | {"validation": best.validation} | ({"attempts": more} if more else {})
    for text in start_findings(task_of(spec).metric, found):
        log.warning("distill: %s", text)
    return found


def _attempts(spec: Spec, initial: Path | None) -> list[Spec]:
    """The spec, and where the student inherits other ways to do so."""
    if spec.student.init != "inherit" or initial is not None:
        return [spec]
    other = "taylor" if spec.student.importance == "activation" else "activation"
    ranked = spec.model_copy(
        update={"student": spec.student.model_copy(update={"importance": other})}
    )
    return [spec, ranked, spec.model_copy(update={"seed": (spec.seed + 1) % 2**32})]


@dataclass(frozen=True)
class _Start:
    """Weights to start from, and what was found of them; `pulse` is that of a dead student."""

    spec: Spec
    state: dict[str, Tensor]
    report: dict[str, Any] | None
    pulse: Pulse | None
    validation: dict[str, Any] | None

    @property
    def is_good(self) -> bool:
        """Not dead, and not worse than a constant as far as that is known."""
        if self.pulse is not None or self.validation is None:
            return self.pulse is None
        start, constant = self.validation["start"], self.validation["constant"]
        return not task_of(self.spec).metric.is_better(constant, start)

    @property
    def rank(self) -> tuple[bool, float]:
        """The least is the best."""
        value = math.nan if self.validation is None else self.validation["start"]
        metric = task_of(self.spec).metric
        return self.pulse is not None, math.inf if math.isnan(value) else metric.worse_by(value, 0)

    @property
    def attempt(self) -> dict[str, Any]:
        """For the report."""
        start = self.spec.student
        value = None if self.validation is None else self.validation["start"]
        return {
            "importance": start.importance,
            "seed": self.spec.seed,
            "dead": self.pulse is not None,
            "start": value,
        }


def _evaluated(
    spec: Spec,
    teacher: nn.Module,
    student: nn.Module,
    report: dict[str, Any] | None,
    store: ImageStore,
    val: Sequence[Photo],
) -> _Start:
    """A start with what crops and, where they can tell something, validation images show of it."""
    task, crops = task_of(spec), batches(spec, teacher, student, store)
    pulse = dead(student, crops, _objective(spec, crops, store))
    predicted = np.zeros(0)
    if val and (report is not None or pulse is not None):
        predicted = predict(student, val, preprocess_of(spec), store.device, task)
    if len(np.unique(predicted, axis=0)) > 1 and pulse is not None and pulse.is_constant:
        pulse = None  # nothing to be seen on these crops, and something on whole images
    validation = None
    if report is not None and len(predicted):
        name, true = task.metric.name, [task.truth(photo) for photo in val]
        known = [task.truth(photo) for photo in store.photos]
        validation = {
            "photos": len(true),
            "metric": name,
            "start": task.scores(predicted, true)[name],
            "constant": task.constant_scores(known, predicted, true)[name],
        }
    state = {name: value.clone() for name, value in student.state_dict().items()}
    return _Start(spec, state, report, pulse, validation)


def start_student(
    spec: Spec,
    teacher: nn.Module,
    student: nn.Module,
    architecture: Mapping[str, Any],
    store: ImageStore,
    initial: Path | None = None,
) -> dict[str, Any] | None:
    """Give the student its first weights, in place.

    Args:
        spec: its sections seed, task, data, student, distill and export.
        teacher: in inference mode.
        student: of the architecture.
        architecture: as the search wrote it.
        store: the training photos, on the device where this is worked out.
        initial: weights of a search, from its short distillation of this student.

    Returns:
        What inheriting found, layer by layer; None for the other ways to start.

    Raises:
        KDError: those of `load_weights` and of `inherit`.
    """
    if spec.student.weights is not None:
        counts = class_counts(teacher, student, spec)
        load_weights(student, spec.student.weights, counts)
    if spec.student.init != "inherit":
        return None
    if initial is not None:
        load_weights(student, initial)
        return None
    if architecture["family"] == "staged":
        log.warning(
            "distill: the searched student shares no layer with the teacher, and without "
            "search.finalists starts from random weights; distill.lr is %g",
            spec.distill.lr,
        )
        return None
    teacher, student = teacher.to(store.device).eval(), student.to(store.device)
    crops = batches(spec, teacher, student, store)
    objective = _objective(spec, crops, store)

    def loss(output: Tensor, index: int) -> Tensor:
        return objective.hard(output, crops[index].target)

    images = [batch.images for batch in crops]
    report = inherit(teacher, student, architecture, images, spec.student.importance, loss)
    log.info("distill: inherited the teacher's channels in %.1f s", report["seconds"])
    return report


def _objective(spec: Spec, crops: Sequence[Batch], store: ImageStore) -> Objective:
    """The task's losses, scaled by some crops' targets."""
    labels = torch.cat([batch.target for batch in crops])
    options = stage_plans(spec.distill)[0].options
    return make_objective(task_of(spec), options, labels, store.photos)


def batches(spec: Spec, teacher: nn.Module, student: nn.Module, store: ImageStore) -> list[Batch]:
    """Real training crops of the first stage, without flips or colour."""
    first = stage_plans(spec.distill)[0].options
    at_once = 1 if runs_alone(teacher) else CROPS_AT_ONCE  # each call of a layer is of one batch
    plain = {"batch": min(at_once, spec.student.crops), "colour": 0.0, "views": 0}
    options = first.model_copy(update=plain)
    preprocess = preprocess_of(spec)
    stride = output_stride(teacher, student, spec)
    targets = objective_of(task_of(spec), options).targets(
        store.photos, stride, spec.data.sigma, store.device
    )
    sampler = sampler_of(store)(
        store.photos, preprocess, options, targets, spec.seed, store.device, store=store
    )
    return [sampler.batch(step) for step in range(-(-spec.student.crops // options.batch))]
