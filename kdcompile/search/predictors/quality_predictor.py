"""What a space's students are expected to be worth, from cheap evidence to dear.

A judge knows the teacher's validation metric and answers for any student how much worse it should
be, and how sure that is. `learn` measures what tells most about the students that it is shown.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.core.store import Store
from kdcompile.data.images import ImageStore
from kdcompile.data.splits import load_splits
from kdcompile.distill.start import batches, start_student
from kdcompile.distill.training_context import training_device
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.predictors.assemble import WEIGHTS, assemble
from kdcompile.search.predictors.block_data import (
    Ground,
    ImitationOptions,
    bare_ground,
    lessons,
    prepare,
)
from kdcompile.search.predictors.block_distillation import BlockResult, imitate_all
from kdcompile.search.predictors.block_error_model import (
    Regression,
    errors_of,
    measure_first,
)
from kdcompile.search.predictors.layer_reconstruction import LayerErrors
from kdcompile.search.predictors.sensitivity import (
    Curve,
    Expected,
    expected,
    paired_increase,
    sensitivity,
    validation_errors,
)
from kdcompile.search.predictors.short_distillation import Finalist, distil
from kdcompile.search.spaces.pruned import LayerSpace
from kdcompile.search.spaces.staged import Block, blocks_of
from kdcompile.tasks.task import find_task

Architecture = Mapping[str, Any]


class Judge(Protocol):
    """Evidence on the students of one space."""

    def guess(self, architecture: Architecture) -> float:
        """An order alone: lower is better. Fast."""

    def learn(self, likely: Sequence[Architecture], number: int) -> int:
        """Measure at most `number` things about these students; how many it was."""

    def expected(self, architecture: Architecture) -> Expected:
        """How much worse than the teacher it should be, in the metric's unit."""

    def distil(self, architectures: Sequence[Architecture], steps: int) -> list[Finalist]:
        """What a short distillation makes of each."""

    def start(self, architecture: Architecture) -> Path | None:
        """The file with its first weights; None where `student.init` makes them."""


CROPS, MOST_CROPS = 48, 256  # at 256 x 256 pixels, and at any size
BATCH, MOST_BATCH = 8, 16
IMAGES = 32  # validation images that the teacher's sensitivity is measured on


def options_of(spec: Spec) -> ImitationOptions:
    """How blocks are taught: with small crops, more of them and more at a time."""
    fewer = min(256, spec.distill.crop) ** 2 / 256**2
    crops = min(MOST_CROPS, round(CROPS / fewer))
    batch = min(MOST_BATCH, round(BATCH / fewer))
    return ImitationOptions(
        crops=crops, held=crops // 3, steps=spec.search.block_steps, batch=batch
    )


class StagedJudge:
    """`judge.Judge` of staged students; what it measures is in the store."""

    def __init__(self, spec: Spec, store: Store, jobs: int) -> None:
        """Teach nothing yet: make the crops, and damage the teacher for its sensitivity.

        Raises:
            KDError: `stages-unknown`, or those of the teacher and the data.
        """
        self._jobs = jobs
        self._ground = prepare(spec, options_of(spec), store)
        self._curves: list[Curve] = sensitivity(self._ground, IMAGES, jobs)
        self._cuts = lessons(self._ground).cuts
        self._results: dict[Block, BlockResult] = {}

    def guess(self, architecture: Architecture) -> float:
        """What is expected, without how sure."""
        pairs = zip(self._curves, blocks_of(architecture), strict=True)
        return sum(curve.at(self._error(block)[0]) for curve, block in pairs)

    def learn(self, likely: Sequence[Architecture], number: int) -> int:
        """Teach the blocks of these students that tell most of the rest."""
        blocks = [block for architecture in likely for block in blocks_of(architecture)]
        asked = measure_first(self._cuts, blocks, list(self._results), number)
        self._results |= imitate_all(self._ground, asked, self._jobs)
        for name in ("_regression", "_errors"):
            self.__dict__.pop(name, None)
        return len(asked)

    def expected(self, architecture: Architecture) -> Expected:
        """The sum of what its blocks' errors cost, measured or predicted from their capacity."""
        return expected(self._curves, [self._error(block) for block in blocks_of(architecture)])

    def distil(self, architectures: Sequence[Architecture], steps: int) -> list[Finalist]:
        """Each from its assembled start."""
        return distil(self._ground, architectures, steps, self._jobs)

    def start(self, architecture: Architecture) -> Path | None:
        """The blocks put together, each taught a little longer on what really enters."""
        return assemble(self._ground, architecture).file(WEIGHTS)

    @cached_property
    def _regression(self) -> Regression:
        return Regression.of(self._cuts, list(self._results.values()))

    @cached_property
    def _errors(self) -> dict[Block, tuple[float, float]]:
        return {}

    def _error(self, block: Block) -> tuple[float, float]:
        if block not in self._errors:
            self._errors[block] = errors_of([block], self._results, self._regression)[0]
        return self._errors[block]


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
        task = find_task(self._spec.task.kind)
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
