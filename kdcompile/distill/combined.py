"""Recipes side by side: the terms of each, the task's own terms once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

from kdcompile.config.distill import Distill, Ramp
from kdcompile.core.errors import KDError
from kdcompile.data.augment import Batch
from kdcompile.distill.objective import Objective
from kdcompile.distill.recipe import About, LossInputs, Recipe
from kdcompile.distill.recipe_context import Ground
from kdcompile.distill.taps import Tap

PLUS = "+"
FLAGS = (
    "needs_teacher", "needs_taps", "needs_first", "needs_others", "replaces_soft", "mixes_images",
)  # fmt: skip
TEXTS = ("summary", "formula", "source", "cost", "evidence", "home")


class Combined(Recipe):
    """The extra terms of several recipes, and the label terms of the one that has its own.

    The soft term is the objective's unless one of them replaces it.
    """

    kinds: ClassVar[tuple[type[Recipe], ...]]

    def __init__(self, taps: Sequence[Tap], options: Distill, objective: Objective) -> None:
        """Each part with the weights of its own terms."""
        super().__init__(taps, options, objective)
        self.parts = nn.ModuleList()
        for kind in self.kinds:
            known = kind.defaults(objective, options.reduction)
            own = {name: w for name, w in options.weights.items() if name in known}
            self.parts.append(kind(taps, options.model_copy(update={"weights": own}), objective))

    @classmethod
    def defaults(
        cls, objective: Objective | type[Objective], reduction: str
    ) -> dict[str, float | Ramp]:
        """The parts' own defaults; no `soft` where one of them replaces it."""
        parts = [kind.defaults(objective, reduction) for kind in cls.kinds]
        merged = {name: weight for part in parts for name, weight in part.items()}
        return {n: w for n, w in merged.items() if n != "soft" or not cls.replaces_soft}

    def _each(self) -> list[Recipe]:
        return [part for part in self.parts if isinstance(part, Recipe)]

    def prepare(self, ground: Ground) -> None:
        """Each part's."""
        for part in self._each():
            part.prepare(ground)

    def fit(self, inputs: LossInputs) -> None:
        """Each part's."""
        for part in self._each():
            part.fit(inputs)

    def learn(self, ground: Ground) -> None:
        """Each part's."""
        for part in self._each():
            part.learn(ground)

    def view(self, batch: Batch) -> Batch:
        """The parts' views, one after the other."""
        for part in self._each():
            batch = part.view(batch)
        return batch

    def base(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The objective's terms, or those of the part that has its own label terms."""
        for part in self._each():
            if _has_own_base(type(part)):
                teacher = None if self.replaces_soft else inputs.teacher
                terms = part.base(replace(inputs, teacher=teacher))
                return {n: term for n, term in terms.items() if n in self.weights}
        return super().base(inputs)

    def extra(self, inputs: LossInputs) -> dict[str, Tensor]:
        """The terms of all parts; where images are mixed, of the class of the larger part."""
        if self.objective.of_classes and inputs.target.is_floating_point():
            inputs = replace(inputs, target=inputs.target.argmax(1))
        return {name: term for part in self._each() for name, term in part.extra(inputs).items()}


def combine(kinds: Sequence[type[Recipe]]) -> type[Recipe]:
    """A recipe of several, in their order.

    Raises:
        KDError: `recipe-combine`, they cannot be had together.
    """
    name = PLUS.join(kind.about.name for kind in kinds)
    terms = Counter(term for kind in kinds for term in kind.extra_weights["mean"])
    tasks = _common_tasks(kinds)
    problem = None
    if len(set(kinds)) < len(kinds):
        problem = "one of them is named twice"
    elif twice := [term for term, times in terms.items() if times > 1]:
        problem = f"two of them have a term {twice[0]!r}"
    elif sum(_has_own_base(kind) for kind in kinds) > 1:
        problem = "two of them have label terms of their own"
    elif tasks is None:
        problem = "no task suits all of them"
    if problem is not None:
        raise KDError(
            "recipe-combine",
            f"recipes {name}: {problem}",
            where="[distill] recipe",
            fix="leave one out; kdcompile recipes show NAME has the terms and tasks of each",
        )
    facts = {flag: any(getattr(kind, flag) for kind in kinds) for flag in FLAGS}
    facts["widens"] = _widens(kinds)
    weights = {
        by: {term: weight for kind in kinds for term, weight in kind.extra_weights[by].items()}
        for by in ("mean", "paper")
    }
    about = About(name, *(_joined(kinds, part) for part in TEXTS))
    needs = tuple(dict.fromkeys(need for kind in kinds for need in kind.needs))
    why = next((kind.why for kind in kinds if kind.tasks == tasks), "")
    own = {"kinds": tuple(kinds), "about": about, "extra_weights": weights, "needs": needs}
    return type(name, (Combined,), own | facts | {"tasks": tasks, "why": why})


def _has_own_base(kind: type[Recipe]) -> bool:
    return kind.base is not Recipe.base


def _widens(kinds: Sequence[type[Recipe]]) -> bool:
    """Whether outputs are compared by a part that knows of new classes, and by no other part."""
    compare = [kind for kind in kinds if kind.replaces_soft]
    return bool(compare) and all(kind.widens for kind in compare)


def _common_tasks(kinds: Sequence[type[Recipe]]) -> tuple[str, ...] | None:
    """The tasks that suit all of them, () where any does; None where none does."""
    limits = [set(kind.tasks) for kind in kinds if kind.tasks]
    common = tuple(sorted(set.intersection(*limits))) if limits else ()
    return common if common or not limits else None


def _joined(kinds: Sequence[type[Recipe]], text: str) -> str:
    return "; ".join(str(getattr(kind.about, text)) for kind in kinds)
