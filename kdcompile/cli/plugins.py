"""Commands `plugins` and `recipes`: what is built in or installed, what it needs and costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from kdcompile.cli.options import as_json
from kdcompile.cli.terminal import echo_json, echo_text, show
from kdcompile.core.escape import plain, plain_lines


@dataclass(frozen=True)
class PluginLine:
    """One object of the registry; `problem` is why it cannot be used, or None."""

    kind: str
    name: str
    distribution: str
    version: str
    source: str
    problem: str | None


@dataclass(frozen=True)
class Plugins:
    """The objects of the registry, by kind."""

    plugins: list[PluginLine]


@dataclass(frozen=True)
class RecipeLine:
    """A recipe in the list; without tasks it suits all."""

    summary: str
    home: str
    tasks: list[str]


@dataclass(frozen=True)
class Recipe:
    """What a recipe computes, needs and costs."""

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


@click.command()
@as_json
def plugins(as_json: bool) -> None:
    """List what is installed, by kind: recipes, tasks, formats, gates, targets and the like.

    Each with the distribution that brings it; what cannot be used is explained below the list.
    """
    from kdcompile.core.plugins import BUILT_IN, listing
    from kdcompile.core.report import columns

    lines = [
        PluginLine(
            kind, one.name, one.distribution, one.version, one.source,
            None if error is None else str(error),
        )
        for kind in sorted(BUILT_IN)
        for one, error in listing(kind)
    ]  # fmt: skip
    if as_json:
        echo_json(Plugins(lines))
        return
    rows = [
        tuple(map(plain, (one.kind, one.name, f"{one.distribution} {one.version}", one.source)))
        for one in lines
    ]
    echo_text("\n".join(columns([("kind", "name", "distribution", "source"), *rows])))
    for one in lines:
        if one.problem is not None:
            click.echo(plain_lines(one.problem), err=True)


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List the distillation recipes, and where those are that are no loss."""
    if context.invoked_subcommand is not None:
        return
    from kdcompile.distill.registry import ELSEWHERE
    from kdcompile.distill.registry import recipes as known

    about = {name: (kind.about, list(kind.tasks)) for name, kind in known().items()}
    about |= {name: (one, []) for name, one in ELSEWHERE.items()}
    found = {name: RecipeLine(one.summary, one.home, kinds) for name, (one, kinds) in about.items()}
    show(found, as_json, _listed)


def _listed(found: Mapping[str, RecipeLine]) -> list[str]:
    width, lines = max(map(len, found)), []
    for name, one in found.items():
        tasks = f" ({', '.join(one.tasks)})" if one.tasks else ""
        home = "" if one.home == "loss" else f" [{one.home}]"
        lines.append(f"{name:<{width}} {one.summary}{tasks}{home}")
    return lines


@recipes.command("show")
@click.argument("name")
@as_json
def show_recipe(name: str, as_json: bool) -> None:
    """Print what a recipe, or several joined as a+b, computes, needs and costs."""
    show(_recipe(name), as_json, _described)


def _described(recipe: Recipe) -> list[str]:
    lines = []
    for key, value in vars(recipe).items():
        shown = "; ".join(value) if isinstance(value, list) else value
        if shown and key not in ("objectives", "weights"):
            lines.append(f"{key:<9} {shown}")
    for kind, formula in recipe.objectives.items():
        lines += ["", f"{kind}: {formula or 'the terms of the recipe alone'}"]
        for by, terms in recipe.weights[kind].items():
            shown = ", ".join(f"{name} {weight}" for name, weight in terms.items())
            lines.append(f"  weights, {by}: {shown}")
    return lines


def _recipe(name: str) -> Recipe:
    from kdcompile.distill.objective import OBJECTIVES
    from kdcompile.distill.recipe import NEEDS
    from kdcompile.distill.registry import ELSEWHERE, find_recipe

    if name in ELSEWHERE:
        return Recipe(**vars(ELSEWHERE[name]), tasks=[], objectives={}, weights={}, needs=[])
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
    return Recipe(
        **vars(recipe.about),
        tasks=list(suited),
        objectives={k: o.formula if takes_part[k] else "" for k, o in suited.items()},
        weights=weights,
        needs=[
            *(need for need, used in needs if used),
            *(NEEDS[need].what for need in recipe.needs),
        ],
    )


def _plain(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Weights as JSON values: a number, or the fields of a ramp."""
    return {n: w if isinstance(w, int | float) else w.model_dump() for n, w in weights.items()}
