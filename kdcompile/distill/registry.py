"""Finding recipes by name, those of plug-ins included, and joining several with a plus sign."""

from collections.abc import Callable

import kdcompile.distill.recipes  # noqa: F401  a cache key covers all of them
from kdcompile.config.spec import Spec
from kdcompile.core import plugins
from kdcompile.core.errors import KDError
from kdcompile.distill.combined import PLUS, combine
from kdcompile.distill.elsewhere import ELSEWHERE
from kdcompile.distill.recipe import Recipe
from kdcompile.distill.recipe_context import refuse_unmet
from kdcompile.distill.schedule import stage_plans
from kdcompile.tasks.task import task_of


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
        KDError: `recipe-unknown`, `recipe-combine`, `recipe-task` or `recipe-needs`.
    """
    for plan in stage_plans(spec.distill):
        kind = find_recipe(plan.options.recipe)
        kind.refuse_task(task_of(spec).like)
        refuse_unmet(kind.about.name, kind.needs, spec)


def any_recipe(spec: Spec, wants: Callable[[type[Recipe]], bool]) -> bool:
    """Whether a recipe of one of the stages is such."""
    return any(wants(find_recipe(plan.options.recipe)) for plan in stage_plans(spec.distill))
