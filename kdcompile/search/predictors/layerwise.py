"""Evidence on students that are the teacher's own layers, narrower or fewer.

Each layer's error follows in closed form from the teacher alone; a few students that inherit and
are not trained say what such an error of the output costs in the validation metric.
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.core.store import Store
from kdcompile.data.images import ImageStore
from kdcompile.data.splits import load_splits
from kdcompile.distill.start import batches, start_student
from kdcompile.distill.training_context import training_device
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.predictors.base import Architecture
from kdcompile.search.predictors.block_data import Ground, ImitationOptions, bare_ground
from kdcompile.search.predictors.layer_reconstruction import LayerErrors
from kdcompile.search.predictors.sensitivity import Expected, paired_increase, validation_errors
from kdcompile.search.predictors.short_distillation import Finalist, distil
from kdcompile.search.spaces.pruned import LayerSpace
from kdcompile.tasks.task import task_of

ANCHORS = (0.75, 0.5, 0.25)  # uniform widths whose inherited students are judged
UNSURE = 0.5  # relative deviation of an expectation, before the anchors


class LayersJudge:
    """`judge.Judge` of a teacher's own layers."""

    def __init__(
        self, spec: Spec, store: Store, jobs: int, teacher: nn.Module, space: LayerSpace
    ) -> None:
        """Measure every layer's errors.

        Raises:
            KDError: those of the data and of inheriting.
        """
        self._spec, self._jobs, self._space = spec, jobs, space
        self._ground: Ground = bare_ground(spec, ImitationOptions(), store)
        photos = load_splits(spec.data, spec.folder).train
        self._photos = ImageStore(photos, spec.export.profile[1][1], training_device())
        self._teacher = copy.deepcopy(teacher).to(training_device())
        crops = [b.images for b in batches(spec, self._teacher, self._teacher, self._photos)]
        self._errors = LayerErrors(self._teacher, space.template.channels, crops)

    def guess(self, architecture: Architecture) -> float:
        """The output's relative error."""
        return self._errors.expected(architecture)

    def learn(self, likely: Sequence[Architecture], number: int) -> int:
        """All that is to be known follows from the layers' errors."""
        return 0

    def expected(self, architecture: Architecture) -> Expected:
        """The output's error times what the anchors say that it costs."""
        slope, spread = self._cost
        error = self._errors.expected(architecture)
        return Expected(slope * error, spread * error)

    def distil(self, architectures: Sequence[Architecture], steps: int) -> list[Finalist]:
        """Each from what it inherits."""
        return distil(self._ground, architectures, steps, self._jobs)

    def start(self, architecture: Architecture) -> Path | None:
        """Inheriting is the start."""
        return None

    @cached_property
    def _cost(self) -> tuple[float, float]:
        """Metric for a unit of the output's relative error, and the deviation of that."""
        task = task_of(self._spec)
        whole = validation_errors(self._teacher, self._spec)
        errors, worse = [], []
        for ratio in ANCHORS:
            architecture = self._space.uniform(ratio)
            damaged = validation_errors(self._inherited(architecture), self._spec)
            increase, sd = paired_increase(task, whole, damaged, self._spec.seed)
            errors.append(self._errors.expected(architecture))
            worse.append(max(increase, sd))  # no anchor is known to cost less than its own error
        x, y = np.array(errors), np.array(worse)
        slope = float((x * y).sum() / max((x * x).sum(), 1e-30))
        residual = float(np.sqrt(np.mean((y - slope * x) ** 2)) / max(float(x.mean()), 1e-30))
        return slope, max(residual, UNSURE * slope)

    def _inherited(self, architecture: Architecture) -> nn.Module:
        """The student as it starts."""
        student = student_from_architecture(self._teacher, architecture, self._spec.folder)
        inherit = self._spec.student.model_copy(update={"init": "inherit"})
        spec = self._spec.model_copy(update={"student": inherit}).at(self._spec.path)
        start_student(spec, self._teacher, student, architecture, self._photos)
        return student.eval()
