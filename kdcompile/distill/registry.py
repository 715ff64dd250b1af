"""How the files of `recipes/` are found, and recipes that are joined with a plus sign."""

import importlib
import pkgutil
from collections.abc import Callable

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError, nearest
from kdcompile.distill import recipes as folder
from kdcompile.distill.combined import PLUS, combine
from kdcompile.distill.elsewhere import ELSEWHERE
from kdcompile.distill.recipe import Recipe
from kdcompile.distill.recipe_context import refuse_unmet
from kdcompile.distill.schedule import stage_plans


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
    """The recipe of that name; of `a+b` one with the terms of both.

    Raises:
        KDError: `recipe-unknown` or `recipe-combine`.
    """
    known = recipes()
    parts = [part.strip() for part in name.split(PLUS)]
    for part in parts:
        if part in ELSEWHERE:
            raise KDError(
                "recipe-unknown",
                f"{part} is no loss",
                where="[distill] recipe",
                fix=f"train with another recipe; {part} is {ELSEWHERE[part].home}",
            )
        if part not in known:
            raise KDError(
                "recipe-unknown",
                f"there is no recipe {part!r}{nearest(part, known)}",
                where="[distill] recipe",
                fix=f"one of {', '.join(known)}; kdcompile recipes describes them",
            )
    return known[name] if len(parts) == 1 else combine([known[part] for part in parts])


def refuse_recipes(spec: Spec) -> None:
    """Refuse recipes that a spec's task or fields cannot serve, before anything is spent.

    Raises:
        KDError: `recipe-unknown`, `recipe-combine`, `recipe-task` or `recipe-needs`.
    """
    for plan in stage_plans(spec.distill):
        kind = find_recipe(plan.options.recipe)
        kind.refuse_task(spec.task.kind)
        refuse_unmet(kind.about.name, kind.needs, spec)


def any_recipe(spec: Spec, wants: Callable[[type[Recipe]], bool]) -> bool:
    """Whether a recipe of one of the stages is such."""
    return any(wants(find_recipe(plan.options.recipe)) for plan in stage_plans(spec.distill))
