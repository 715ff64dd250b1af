"""Short trainings from one start, each kept once it is done, to choose how the long one goes."""

import copy
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdcompile.config.spec import Spec
from kdcompile.core.distributed import processes
from kdcompile.core.errors import KDError
from kdcompile.core.files import is_sealed, seal, write_json
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.splits import evenly
from kdcompile.distill.shortened import shorten_training
from kdcompile.distill.train import Trainer
from kdcompile.tasks.task import Floats, task_of

MOST_IMAGES = 64  # of validation, that a short training is judged on
VALIDATIONS = 2  # of a short training: its start and its end
UNFIT = ("tap-", "recipe-", "loss-nonfinite", "student-nonfinite")  # codes: it cannot run, or broke


@dataclass(frozen=True)
class Outcome:
    """What a short training gave.

    value: the validation metric at its end; start: before its first step; predicted, initial: of
    the validation photos then, float64 [N] or rows; problem: why there is nothing, or empty.
    """

    value: float
    start: float
    predicted: Floats
    initial: Floats
    problem: str = ""


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of parts of a training, counted and not timed.

    student: forward pass of a crop; teacher: the same; validation: of the student, of all photos.
    """

    student: float
    teacher: float
    validation: float

    def of_step(self, batch: int, needs_teacher: bool) -> float:
        """Forward and backward pass of a batch; the backward one counts twice."""
        return batch * (3 * self.student + (self.teacher if needs_teacher else 0.0))


@dataclass(frozen=True)
class ShortRuns:
    """Trainings of one student from one start; a result that is kept is read.

    work: a folder that outlives an interruption. pool: photos without labels.
    """

    teacher: nn.Module
    student: nn.Module
    train: Sequence[Photo]
    val: Sequence[Photo]
    work: Path
    store: ImageStore
    pool: Sequence[Photo] = ()

    @property
    def judged(self) -> list[Photo]:
        """The validation photos that are looked at."""
        return evenly(self.val, MOST_IMAGES)

    def run(self, name: str, spec: Spec, steps: int) -> Outcome:
        """Train so many steps as the spec says, and validate.

        Args:
            name: of this training, by which its result is kept.
            spec: with its recipe and its rate.
            steps: over all stages.

        Raises:
            KDError: the trainer's, but of a recipe that cannot run here or a training that breaks.
        """
        place, file = processes(), self.work / f"{name}.json"
        if not place.told(is_sealed(file)):
            outcome = self._trained(name, spec, steps)
            place.barrier()
            if place.is_main:
                rows = {n: getattr(outcome, n).tolist() for n in ("predicted", "initial")}
                write_json(file, vars(outcome) | rows)
                seal(file)
                shutil.rmtree(self.work / name, ignore_errors=True)
            place.barrier()
        kept = json.loads(file.read_text())
        for part in ("predicted", "initial"):
            kept[part] = np.asarray(kept[part], np.float64)
        return Outcome(**kept)

    def _trained(self, name: str, spec: Spec, steps: int) -> Outcome:
        short = shorten_training(spec, steps)
        options = short.distill.model_copy(update={"evaluations": 1})
        short = short.model_copy(update={"distill": options}).at(spec.path)
        try:
            trainer = self.trainer(name, short)
            trainer.is_quiet = True
            state = trainer.run()
        except KDError as error:
            if not error.code.startswith(UNFIT):
                raise
            nothing = np.zeros(0)
            return Outcome(math.nan, math.nan, nothing, nothing, error.message)
        key, now = f"val_{task_of(spec).metric.name}", trainer.last_predicted
        values = [row[key] for row in state.metrics if key in row]
        broken = "" if np.isfinite(now).all() else "its predictions are no numbers"
        return Outcome(values[-1], values[0], now, state.initial, broken)

    def trainer(self, name: str, spec: Spec) -> Trainer:
        """A trainer at the start, in a folder of its own."""
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        student = copy.deepcopy(self.student)
        return Trainer(
            spec, self.teacher, student, self.train, self.judged, folder, store=self.store,
            pool=self.pool,
        )  # fmt: skip


def cost_of(trainer: Trainer, spec: Spec, photos: int) -> Cost:
    """Multiply-adds of the networks of a trainer, a validation of so many photos."""
    setting = trainer.setting
    example = setting.example(spec.distill.crop)
    student, teacher = _macs(setting.student, example), _macs(setting.teacher, example)
    is_image = example.dim() == 4
    larger = math.prod(spec.export.profile[1][2:]) / math.prod(example.shape[2:]) if is_image else 1
    return Cost(student, teacher, min(photos, MOST_IMAGES) * student * larger)


@torch.no_grad()
def _macs(network: nn.Module, example: torch.Tensor) -> float:
    """Of one forward pass; at least one."""
    training = network.training
    network.eval()
    with FlopCounterMode(display=False) as counted:
        network(example.to(next(network.parameters()).dtype))
    network.train(training)
    return max(1.0, float(counted.get_total_flops()) / 2)
