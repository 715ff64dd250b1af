"""`plugins`: recipes, tasks and all else that is built in or installed, and where it is from."""

import click
from typing_extensions import TypedDict

from kdcompile.cli.options import as_json, echo_json


class PluginLine(TypedDict):
    """One object of the registry; `problem` is why it cannot be used, or None."""

    kind: str
    name: str
    distribution: str
    version: str
    source: str
    problem: str | None


class Plugins(TypedDict):
    """`kdcompile plugins`."""

    plugins: list[PluginLine]


@click.command()
@as_json
def plugins(as_json: bool) -> None:
    """List what is installed, by kind: recipes, tasks, formats, gates, targets and the like.

    Each with the distribution that brings it; what cannot be used is explained below the list.
    """
    from kdcompile.core.plugins import BUILT_IN, listing
    from kdcompile.core.report import columns

    found: list[PluginLine] = [
        {
            "kind": kind,
            "name": one.name,
            "distribution": one.distribution,
            "version": one.version,
            "source": one.source,
            "problem": None if error is None else str(error),
        }
        for kind in sorted(BUILT_IN)
        for one, error in listing(kind)
    ]
    if as_json:
        echo_json({"plugins": found})
        return
    rows = [
        (one["kind"], one["name"], f"{one['distribution']} {one['version']}", one["source"])
        for one in found
    ]
    click.echo("\n".join(columns([("kind", "name", "distribution", "source"), *rows])))
    for one in found:
        if one["problem"] is not None:
            click.echo(one["problem"], err=True)
