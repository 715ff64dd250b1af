"""What a recipe is, and how the files of `recipes/` are found."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from kdcompile.distill import recipes as folder
from kdcompile.distill.objective import ByReduction, Objective
from kdcompile.distill.taps import Tap
from kdcompile.errors import KDError, nearest
from kdcompile.spec_distill import Distill, Ramp


@dataclass(frozen=True)
class About:
    """What `kdcompile recipes show` prints."""

    name: str
    summary: str
    formula: str
    source: str
    cost: str
    evidence: str


@dataclass(frozen=True)
class LossInputs:
    """Everything that a recipe may compare in one step.

    student: the task's output; target: its labels; teacher: the same output, or None where it is
    not needed. The features are the taps' maps [N, C, H, W], in order.
    """

    student: Tensor
    target: Tensor
    teacher: Tensor | None
    student_features: Sequence[Tensor]
    teacher_features: Sequence[Tensor]


class Recipe(nn.Module, ABC):
    """Loss terms with their weights. Adapters are its parameters, so they are never exported.

    extra_weights: default weights of the terms beyond the objective's, by reduction.
    needs_teacher, needs_taps: what it takes. tasks: the kinds that it is made for, all if empty.
    mixes_images: its batches are not crops of single photos, so no teacher output recurs.
    """

    about: ClassVar[About]
    extra_weights: ClassVar[ByReduction] = {"mean": {}, "paper": {}}
    needs_teacher: ClassVar[bool] = True
    needs_taps: ClassVar[bool] = False
    mixes_images: ClassVar[bool] = False
    tasks: ClassVar[tuple[str, ...]] = ()

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """Weights by name: the defaults of objective and recipe, then the spec's.

        Raises:
            KDError: `recipe-term`, or `recipe-task`.
        """
        super().__init__()
        if self.tasks and objective.kind not in self.tasks:
            raise KDError(
                "recipe-task",
                f"recipe {self.about.name} is for {', '.join(self.tasks)}, not {objective.kind}",
                where="[distill] recipe",
                fix="use kd or none; kdcompile recipes describes them",
            )
        known = self.defaults(objective, options.reduction)
        self.weights = {**known, **options.weights}
        self.objective, self.options = objective, options
        unknown = set(options.weights) - set(known)
        if unknown:
            name = sorted(unknown)[0]
            raise KDError(
                "recipe-term",
                f"recipe {self.about.name} has no term {name!r}" + nearest(name, known),
                where="[distill.weights]",
                fix=f"one of {', '.join(known)}",
            )

    @classmethod
    def defaults(
        cls, objective: Objective | type[Objective], reduction: str
    ) -> dict[str, float | Ramp]:
        """The default weight of each term for a task."""
        own = objective.weights[reduction]
        shared = {n: w for n, w in own.items() if cls.needs_teacher or n != "soft"}
        return {**shared, **cls.extra_weights[reduction]}

    def is_off(self, term: str) -> bool:
        """True when the term's weight is zero throughout."""
        return self.weights[term] == 0

    @abstractmethod
    def terms(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The unweighted terms by name, float32 scalars; one that is off may be left out."""

    def fit(self, inputs: LossInputs) -> None:
        """Set the recipe's own parameters from a first batch; here there are none."""

    def forward(self, inputs: LossInputs) -> dict[str, Tensor]:
        """`terms`, so that hooks and wrappers of modules see the call."""
        return self.terms(inputs)


def recipes() -> dict[str, type[Recipe]]:
    """Every recipe by name: the one subclass that each file of `recipes/` defines."""
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")
    known: list[type[Recipe]] = list(Recipe.__subclasses__())
    for kind in known:
        known += [sub for sub in kind.__subclasses__() if sub not in known]
    shipped = [kind for kind in known if kind.__module__.startswith(folder.__name__)]
    return {kind.about.name: kind for kind in sorted(shipped, key=lambda k: k.about.name)}


def find_recipe(name: str) -> type[Recipe]:
    """The recipe of that name.

    Raises:
        KDError: `recipe-unknown`.
    """
    known = recipes()
    if name not in known:
        raise KDError(
            "recipe-unknown",
            f"there is no recipe {name!r}{nearest(name, known)}",
            where="[distill] recipe",
            fix=f"one of {', '.join(known)}; kdcompile recipes describes them",
        )
    return known[name]
