"""`kdcompile recipes`: the library of distillation methods, with what each needs and costs."""

from collections.abc import Mapping
from typing import Any

import click
from typing_extensions import TypedDict

from kdcompile.cli.options import as_json, echo_json


class RecipeLine(TypedDict):
    """A recipe of `kdcompile recipes`; no tasks: it suits all."""

    summary: str
    home: str
    tasks: list[str]


class Recipe(TypedDict):
    """`kdcompile recipes show`."""

    name: str
    summary: str
    formula: str
    source: str
    cost: str
    evidence: str
    home: str
    tasks: list[str]
    objectives: dict[str, str]
    weights: dict[str, Any]
    needs: list[str]


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List the distillation recipes, and where those live that are no loss."""
    if context.invoked_subcommand is not None:
        return
    from kdcompile.distill.registry import ELSEWHERE
    from kdcompile.distill.registry import recipes as known

    found = {
        name: {
            "summary": kind.about.summary,
            "home": kind.about.home,
            "tasks": list(kind.tasks),
        }
        for name, kind in known().items()
    }
    for name, about in ELSEWHERE.items():
        found[name] = {"summary": about.summary, "home": about.home, "tasks": []}
    if as_json:
        echo_json(found)
        return
    width = max(map(len, found))
    for name, facts in found.items():
        tasks = f" ({', '.join(facts['tasks'])})" if facts["tasks"] else ""
        home = "" if facts["home"] == "loss" else f" [{facts['home']}]"
        click.echo(f"{name:<{width}} {facts['summary']}{tasks}{home}")


@recipes.command("show")
@click.argument("name")
@as_json
def show_recipe(name: str, as_json: bool) -> None:
    """Print what a recipe, or several joined as a+b, computes, needs and costs."""
    facts = _facts(name)
    if as_json:
        echo_json(facts)
        return
    objectives, weights = facts.pop("objectives"), facts.pop("weights")
    for key, value in facts.items():
        shown = "; ".join(value) if isinstance(value, list) else value
        if shown:
            click.echo(f"{key:<9} {shown}")
    for kind, formula in objectives.items():
        click.echo(f"\n{kind}: {formula or 'the terms of the recipe alone'}")
        for by, terms in weights[kind].items():
            shown = ", ".join(f"{name} {weight}" for name, weight in terms.items())
            click.echo(f"  weights, {by}: {shown}")


def _facts(name: str) -> dict[str, Any]:
    from dataclasses import asdict

    from kdcompile.distill.objective import OBJECTIVES
    from kdcompile.distill.recipe import NEEDS
    from kdcompile.distill.registry import ELSEWHERE, find_recipe

    if name in ELSEWHERE:
        return asdict(ELSEWHERE[name]) | {"objectives": {}, "weights": {}, "needs": [], "tasks": []}
    recipe = find_recipe(name)
    suited = {k: o for k, o in OBJECTIVES.items() if not recipe.tasks or k in recipe.tasks}
    needs = (("teacher", recipe.needs_teacher), ("taps", recipe.needs_taps))
    weights = {
        kind: {by: _plain(recipe.defaults(objective, by)) for by in objective.weights}
        for kind, objective in suited.items()
    }
    takes_part = {
        kind: any(term in objective.weights["mean"] for term in weights[kind]["mean"])
        for kind, objective in suited.items()
    }
    return asdict(recipe.about) | {
        "objectives": {k: o.formula if takes_part[k] else "" for k, o in suited.items()},
        "weights": weights,
        "needs": [
            *(need for need, used in needs if used),
            *(NEEDS[need].what for need in recipe.needs),
        ],
        "tasks": list(suited),
    }


def _plain(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights as JSON values: a number, or the fields of a ramp."""
    return {n: w if isinstance(w, int | float) else w.model_dump() for n, w in weights.items()}
