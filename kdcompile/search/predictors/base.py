"""What a space's students are expected to be worth, from cheap evidence to dear.

A judge knows the teacher's validation metric and answers for any student how much worse it should
be, and how sure that is. `learn` measures what tells most about the students that it is shown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.search.predictors.sensitivity import Expected, validation_errors
from kdcompile.search.predictors.short_distillation import Finalist
from kdcompile.tasks.task import task_of

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


def validation_metric(network: nn.Module, spec: Spec) -> float:
    """The metric of a network on all validation images."""
    return task_of(spec).metric(validation_errors(network, spec))
