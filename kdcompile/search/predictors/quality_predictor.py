"""Quality predictors of the two search spaces: how much worse than the teacher a student will be.

Staged students: blocks that imitate the teacher's, and what their errors cost. Students of the
teacher's own layers: each layer's error follows in closed form from the teacher alone; a few
students that inherit and are not trained give the cost of such an error in the validation metric.
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
    BlockContext,
    BlockOptions,
    context_without_data,
    prepare_training_data,
    training_data,
)
from kdcompile.search.predictors.block_distillation import BlockResult, distil_blocks
from kdcompile.search.predictors.block_error_model import (
    Regression,
    errors_of,
    measure_first,
)
from kdcompile.search.predictors.layer_reconstruction import LayerErrors
from kdcompile.search.predictors.sensitivity import (
    Curve,
    ExpectedLoss,
    expected_loss,
    paired_increase,
    sensitivity,
    validation_errors,
)
from kdcompile.search.predictors.short_distillation import Finalist, distil
from kdcompile.search.spaces.pruned import LayerSpace
from kdcompile.search.spaces.staged import Block, blocks_of
from kdcompile.tasks.task import task_of

Architecture = Mapping[str, Any]


class QualityPredictor(Protocol):
    """Evidence on the students of one space."""

    def guess(self, architecture: Architecture) -> float:
        """An order alone: lower is better. Fast."""

    def learn(self, likely: Sequence[Architecture], number: int) -> int:
        """Measure at most `number` things about these students; how many it was."""

    def expected_loss(self, architecture: Architecture) -> ExpectedLoss:
        """How much worse than the teacher it should be, in the metric's unit."""

    def distil(self, architectures: Sequence[Architecture], steps: int) -> list[Finalist]:
        """What a short distillation makes of each."""

    def start(self, architecture: Architecture) -> Path | None:
        """The file with its first weights; None where `student.init` makes them."""


CROPS, MOST_CROPS = 48, 256  # at 256 x 256 pixels, and at any size
BATCH, MOST_BATCH = 8, 16
IMAGES = 32  # validation images that the teacher's sensitivity is measured on


def options_of(spec: Spec) -> BlockOptions:
    """How blocks are trained: with small crops, more of them and more at a time."""
    fewer = min(256, spec.distill.crop) ** 2 / 256**2
    crops = min(MOST_CROPS, round(CROPS / fewer))
    batch = min(MOST_BATCH, round(BATCH / fewer))
    return BlockOptions(crops=crops, held=crops // 3, steps=spec.search.block_steps, batch=batch)


class StagedPredictor:
    """`QualityPredictor` of staged students; what it measures is in the store."""

    def __init__(self, spec: Spec, store: Store, jobs: int) -> None:
        """Train nothing yet: make the crops, and degrade the teacher for its sensitivity.

        Raises:
            KDError: `stages-unknown`, or those of the teacher and the data.
        """
        self._jobs = jobs
        self._context = prepare_training_data(spec, options_of(spec), store)
        self._curves: list[Curve] = sensitivity(self._context, IMAGES, jobs)
        self._cuts = training_data(self._context).cuts
        self._results: dict[Block, BlockResult] = {}
        self._regression = Regression.of(self._cuts, [])
        self._errors: dict[Block, tuple[float, float]] = {}

    def guess(self, architecture: Architecture) -> float:
        """What is expected, without how sure."""
        pairs = zip(self._curves, blocks_of(architecture), strict=True)
        return sum(curve.at(self._error(block)[0]) for curve, block in pairs)

    def learn(self, likely: Sequence[Architecture], number: int) -> int:
        """Train the blocks of these students that are most informative about the rest."""
        blocks = [block for architecture in likely for block in blocks_of(architecture)]
        requested = measure_first(self._cuts, blocks, list(self._results), number)
        self._results |= distil_blocks(self._context, requested, self._jobs)
        self._regression = Regression.of(self._cuts, list(self._results.values()))
        self._errors = {}
        return len(requested)

    def expected_loss(self, architecture: Architecture) -> ExpectedLoss:
        """The sum of what its blocks' errors cost, measured or predicted from their capacity."""
        return expected_loss(
            self._curves, [self._error(block) for block in blocks_of(architecture)]
        )

    def distil(self, architectures: Sequence[Architecture], steps: int) -> list[Finalist]:
        """Each from its assembled start."""
        return distil(self._context, architectures, steps, self._jobs)

    def start(self, architecture: Architecture) -> Path | None:
        """The blocks put together, each trained a little longer on what really enters."""
        return assemble(self._context, architecture).file(WEIGHTS)

    def _error(self, block: Block) -> tuple[float, float]:
        if block not in self._errors:
            self._errors[block] = errors_of([block], self._results, self._regression)[0]
        return self._errors[block]


ANCHORS = (0.75, 0.5, 0.25)  # uniform widths whose inherited students are evaluated
UNSURE = 0.5  # relative deviation of an expectation, before the anchors


class LayerPredictor:
    """`QualityPredictor` of a teacher's own layers."""

    def __init__(
        self, spec: Spec, store: Store, jobs: int, teacher: nn.Module, space: LayerSpace
    ) -> None:
        """Measure every layer's errors.

        Raises:
            KDError: those of the data and of inheriting.
        """
        self._spec, self._jobs, self._space = spec, jobs, space
        self._context: BlockContext = context_without_data(spec, BlockOptions(), store)
        photos = load_splits(spec.data, spec.folder).train
        self._photos = ImageStore(photos, spec.export.profile[1][1], training_device())
        self._teacher = copy.deepcopy(teacher).to(training_device())
        crops = [b.images for b in batches(spec, self._teacher, self._teacher, self._photos)]
        self._errors = LayerErrors(self._teacher, space.template.channels, crops)

    def guess(self, architecture: Architecture) -> float:
        """The output's relative error."""
        return self._errors.expected_error(architecture)

    def learn(self, likely: Sequence[Architecture], number: int) -> int:
        """All that is to be known follows from the layers' errors."""
        return 0

    def expected_loss(self, architecture: Architecture) -> ExpectedLoss:
        """The output's error times what it costs by the anchors."""
        slope, spread = self._cost
        error = self._errors.expected_error(architecture)
        return ExpectedLoss(slope * error, spread * error)

    def distil(self, architectures: Sequence[Architecture], steps: int) -> list[Finalist]:
        """Each from what it inherits."""
        return distil(self._context, architectures, steps, self._jobs)

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
            degraded = validation_errors(self._inherit(architecture), self._spec)
            increase, sd = paired_increase(task, whole, degraded, self._spec.seed)
            errors.append(self._errors.expected_error(architecture))
            worse.append(max(increase, sd))  # no anchor is known to cost less than its own error
        x, y = np.array(errors), np.array(worse)
        slope = float((x * y).sum() / max((x * x).sum(), 1e-30))
        residual = float(np.sqrt(np.mean((y - slope * x) ** 2)) / max(float(x.mean()), 1e-30))
        return slope, max(residual, UNSURE * slope)

    def _inherit(self, architecture: Architecture) -> nn.Module:
        """The student as it starts."""
        student = student_from_architecture(self._teacher, architecture, self._spec.folder)
        inherit = self._spec.student.model_copy(update={"init": "inherit"})
        spec = self._spec.model_copy(update={"student": inherit}).at(self._spec.path)
        start_student(spec, self._teacher, student, architecture, self._photos)
        return student.eval()
