"""What a recipe is, and how the files of `recipes/` are found."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from kdcompile.distill import recipes as folder
from kdcompile.distill.taps import Tap
from kdcompile.errors import KDError, nearest
from kdcompile.spec import Distill


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

    student, target: [N, 1, h, w] densities; teacher: the same, or None where it is not needed.
    The features are the taps' maps [N, C, H, W], in order.
    """

    student: Tensor
    target: Tensor
    teacher: Tensor | None
    student_features: Sequence[Tensor]
    teacher_features: Sequence[Tensor]


class Recipe(nn.Module, ABC):
    """A weighted sum of loss terms. Adapters are its parameters, so they are never exported."""

    about: ClassVar[About]
    default_weights: ClassVar[Mapping[str, Mapping[str, float]]]  # by reduction, by term
    needs_teacher: ClassVar[bool] = True
    needs_taps: ClassVar[bool] = False

    def __init__(self, taps: Sequence[Tap], options: Distill, scales: tuple[float, float]) -> None:
        """`scales`: mean squared density and mean block count of the labels."""
        super().__init__()
        defaults = self.default_weights[options.reduction]
        unknown = set(options.weights) - set(defaults)
        if unknown:
            name = sorted(unknown)[0]
            raise KDError(
                "recipe-term",
                f"recipe {self.about.name} has no term {name!r}" + nearest(name, defaults),
                where="[distill.weights]",
                fix=f"one of {', '.join(defaults)}",
            )
        self.weights = {**defaults, **options.weights}
        self.reduction, self.scales = options.reduction, scales

    @abstractmethod
    def terms(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The unweighted terms by name, float32 scalars."""

    def forward(self, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and the terms."""
        terms = self.terms(inputs)
        weighted = [self.weights[name] * value for name, value in terms.items()]
        total = weighted[0]
        for term in weighted[1:]:
            total = total + term
        return total, terms


def recipes() -> dict[str, type[Recipe]]:
    """Every recipe by name: the one subclass that each file of `recipes/` defines."""
    for module in pkgutil.iter_modules(folder.__path__):
        importlib.import_module(f"{folder.__name__}.{module.name}")
    known: list[type[Recipe]] = list(Recipe.__subclasses__())
    for kind in known:
        known += [sub for sub in kind.__subclasses__() if sub not in known]
    return {kind.about.name: kind for kind in sorted(known, key=lambda k: k.about.name)}


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
