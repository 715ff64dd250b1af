"""Base class of objectives: the label terms of a task and its soft term."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kdcompile.config.distill import Distill
from kdcompile.data.photo import Photo
from kdcompile.data.targets import Targets
from kdcompile.tasks.task import Task

ByReduction = Mapping[str, Mapping[str, float]]


class Objective(ABC):
    """The terms of a task, float32 scalars.

    `kind` is the built-in task that recipes take it for (`Task.like`); `of_classes`: the targets
    are class indices; `is_dense`: they are maps. `weights` has the default weight of each term by
    reduction, those against the teacher (`soft`) included; `formula` is what `kdcompile recipes
    show` prints.
    """

    kind: ClassVar[str]
    of_classes: ClassVar[bool] = False
    is_dense: ClassVar[bool] = False
    weights: ClassVar[ByReduction]
    formula: ClassVar[str]

    def __init__(self, options: Distill, targets: Tensor) -> None:
        """Read the options and scale by some batches of targets."""
        self.options = options

    @classmethod
    @abstractmethod
    def targets(
        cls, photos: Sequence[Photo], stride: int, sigma: float, device: torch.device
    ) -> Targets:
        """What crops are labelled with; `stride` and `sigma` are for dense tasks."""

    @abstractmethod
    def terms(self, student: Tensor, target: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """The label terms, and `soft` where a teacher's output is given."""

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The soft term alone, of crops without labels.

        An objective need not have it: `refuse_pool` refuses such images then.
        """
        raise NotImplementedError

    @classmethod
    def has_soft(cls) -> bool:
        """Whether images without labels have a term."""
        return cls.soft is not Objective.soft

    def scales(self) -> dict[str, float]:
        """What the batches of targets gave."""
        return {name: value for name, value in vars(self).items() if isinstance(value, float)}

    def learn(self, task: Task, photos: Sequence[Photo]) -> None:  # noqa: B027  may do nothing
        """What it needs of the task and of the training's photos; here nothing."""

    def rescale(self, scales: Mapping[str, float]) -> None:
        """Take what `scales` gave."""
        vars(self).update(scales)

    def hard(self, output: Tensor, target: Tensor) -> Tensor:
        """The label loss alone, for any network's output."""
        return self.terms(output, target, None)["hard"]


AnyObjective = Objective | type[Objective]
