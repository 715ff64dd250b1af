"""Find recipes by name, those of plug-ins included, and join several with a plus sign."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar

from torch import Tensor, nn

import kdcompile.distill.recipes  # noqa: F401  a cache key covers all of them
from kdcompile.config.distill import Distill, Weights
from kdcompile.config.spec import Spec
from kdcompile.core import plugins
from kdcompile.core.errors import KDError
from kdcompile.data.augment import Batch
from kdcompile.distill.objective import AnyObjective, Objective, objective_of
from kdcompile.distill.recipe import About, LossInputs, Recipe, RecipeContext, refuse_unmet
from kdcompile.distill.schedule import stage_plans
from kdcompile.distill.taps import Tap
from kdcompile.distill.teacher_cache import cache_problem
from kdcompile.distill.unlabelled import refuse_pool
from kdcompile.tasks.task import task_of

# methods of the library that are no loss: where each is
_METHODS = (
    About(
        name="pcoreset",
        summary="which images to label next, and which to calibrate with",
        formula="argmax_x min_{s in chosen} |p(x) - p(s)|, one after the other (k-center greedy)",
        source="PCoreSet/ActiveKD (2025, arXiv 2506.00910)",
        cost="one forward pass of the pool",
        evidence="tests/data/test_coreset.py: brute force and the 2-approximation; docs/recipes.md",
        home='kdcompile plan --label N with data.unlabelled; quantize.select = "pcoreset"',
    ),
    About(
        name="skillpack",
        summary="a re-trained student as a small delta to the weights that a device has",
        formula="W' = W + U diag(s) V^T by layer, rank and bits by error per byte",
        source="GraftLLM/SkillPack (2025, arXiv 2505.18502), for convolutions and over the air",
        cost="none in training; none on the device, where the delta is merged before the engine",
        evidence="tests/delta: round trips, hashes, the accuracy gate; docs/recipes.md",
        home="kdcompile delta make and apply",
    ),
)
ELSEWHERE = {about.name: about for about in _METHODS}
PLUS, AUTO = "+", "auto"
FLAGS = (
    "needs_teacher", "needs_taps", "needs_first", "needs_others", "replaces_soft", "mixes_images",
)  # fmt: skip
TEXTS = ("summary", "formula", "source", "cost", "evidence", "home")


def recipes() -> dict[str, type[Recipe]]:
    """Every recipe by name, sorted."""
    return {name: _one(name) for name in sorted(plugins.names("recipes"))}


def _one(name: str) -> type[Recipe]:
    fix = f"one of {', '.join(sorted(plugins.names('recipes')))}; kdcompile recipes describes them"
    found: type[Recipe] = plugins.find("recipes", name, Recipe, "[distill] recipe", fix)
    return found


def find_recipe(name: str) -> type[Recipe]:
    """The recipe of that name; of `a+b` one with the terms of both.

    Raises:
        KDError: `recipe-unknown` or `recipe-combine`.
    """
    parts = [part.strip() for part in name.split(PLUS)]
    for part in parts:
        if part in ELSEWHERE:
            raise KDError(
                "recipe-unknown",
                f"{part} is no loss",
                where="[distill] recipe",
                fix=f"train with another recipe; {part} is {ELSEWHERE[part].home}",
            )
    kinds = [_one(part) for part in parts]
    return kinds[0] if len(kinds) == 1 else combine(kinds)


def refuse_recipes(spec: Spec) -> None:
    """Refuse recipes that a spec's task or fields cannot serve, before anything is spent.

    Raises:
        KDError: `recipe-unknown`, `recipe-combine`, `recipe-task`, `recipe-needs`, `recipe-term`
            `cache-mixed`, `pool-batch` or `pool-objective`.
    """
    for plan in stage_plans(spec.distill):
        kind = find_recipe(plan.options.recipe)
        kind.refuse_task(task_of(spec).like)
        refuse_unmet(kind.about.name, kind.needs, spec)
        kind.refuse_terms(objective_of(task_of(spec)), plan.options)
        cache_problem(kind, plan.options)
        refuse_pool(spec, plan.options, objective_of(task_of(spec)))


def any_recipe(spec: Spec, wants: Callable[[type[Recipe]], bool]) -> bool:
    """Whether a recipe of one of the stages is such."""
    return any(wants(find_recipe(plan.options.recipe)) for plan in stage_plans(spec.distill))


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
    def refuse_labels(cls, labels: Sequence[float], classes: int | None) -> None:
        """Each part's."""
        for kind in cls.kinds:
            kind.refuse_labels(labels, classes)

    @classmethod
    def defaults(cls, objective: AnyObjective, reduction: str) -> Weights:
        """The parts' own defaults; no `soft` where one of them replaces it."""
        parts = [kind.defaults(objective, reduction) for kind in cls.kinds]
        merged = {name: weight for part in parts for name, weight in part.items()}
        return {n: w for n, w in merged.items() if n != "soft" or not cls.replaces_soft}

    @classmethod
    def learns_unlabelled(cls) -> bool:
        """Whether one of the parts does."""
        return any(kind.learns_unlabelled() for kind in cls.kinds)

    def _each(self) -> list[Recipe]:
        return [part for part in self.parts if isinstance(part, Recipe)]

    def prepare(self, context: RecipeContext) -> None:
        """Each part's."""
        for part in self._each():
            part.prepare(context)

    def fit(self, inputs: LossInputs) -> None:
        """Each part's."""
        for part in self._each():
            part.fit(inputs)

    def learn(self, context: RecipeContext) -> None:
        """Each part's."""
        for part in self._each():
            part.learn(context)

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
        return {
            name: term for part in self._each() for name, term in part.extra_terms(inputs).items()
        }

    def soft(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The objective's, or that of the part that has its own label terms."""
        for part in self._each():
            if _has_own_base(type(part)):
                return part.soft(student, teacher)
        return super().soft(student, teacher)


def combine(kinds: Sequence[type[Recipe]]) -> type[Recipe]:
    """A recipe of several, in their order.

    Raises:
        KDError: `recipe-combine`, they cannot be had together.
    """
    name = PLUS.join(kind.about.name for kind in kinds)
    terms = Counter(term for kind in kinds for term in kind.extra_weights["mean"])
    tasks = _common_tasks(kinds)
    problem = None
    if any(kind.about.name == AUTO for kind in kinds):
        problem = "auto chooses a recipe, and is none that another can be joined to"
    elif len(set(kinds)) < len(kinds):
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
    about = About(name, *("; ".join(getattr(k.about, part) for k in kinds) for part in TEXTS))
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
