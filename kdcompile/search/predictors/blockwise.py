"""Evidence on staged students: blocks that imitate the teacher's, and what their errors cost."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from kdcompile.config.spec import Spec
from kdcompile.core.store import Store
from kdcompile.search.predictors.assemble import WEIGHTS, assemble
from kdcompile.search.predictors.base import Architecture
from kdcompile.search.predictors.block_data import ImitationOptions, lessons, prepare
from kdcompile.search.predictors.block_distillation import BlockResult, imitate_all
from kdcompile.search.predictors.block_error_model import (
    Capacity,
    Regression,
    errors_of,
    measure_first,
)
from kdcompile.search.predictors.sensitivity import Curve, Expected, expected, sensitivity
from kdcompile.search.predictors.short_distillation import Finalist, distil
from kdcompile.search.spaces.blocks import Block, blocks_of

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
        self._results: dict[Block, BlockResult] = {}

    @cached_property
    def _capacity(self) -> Capacity:
        return Capacity(lessons(self._ground).cuts)

    def guess(self, architecture: Architecture) -> float:
        """What is expected, without how sure."""
        pairs = zip(self._curves, blocks_of(architecture), strict=True)
        return sum(curve.at(self._error(block)[0]) for curve, block in pairs)

    def learn(self, likely: Sequence[Architecture], number: int) -> int:
        """Teach the blocks of these students that tell most of the rest."""
        blocks = [block for architecture in likely for block in blocks_of(architecture)]
        asked = measure_first(self._capacity, blocks, list(self._results), number)
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
        return Regression.of(self._capacity, list(self._results.values()))

    @cached_property
    def _errors(self) -> dict[Block, tuple[float, float]]:
        return {}

    def _error(self, block: Block) -> tuple[float, float]:
        if block not in self._errors:
            self._errors[block] = errors_of([block], self._results, self._regression)[0]
        return self._errors[block]
