"""Command `bisect`: the first tensor, node and module at which a variant goes wrong."""

import sys
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.options import as_json, spec_options, spec_or_bundle, trusted_option, via
from kdcompile.cli.terminal import show

if TYPE_CHECKING:
    from kdcompile.bundle.trust import Trust


@click.command()
@spec_options
@via("Build and run the engine there")
@click.option(
    "--rung",
    metavar="NAME",
    help="The rung to look at: exported, onnx, rounded (or int8, fp16, ...), engine; by default "
    "the first that fails.",
)
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    help="Relative error of a tensor that still agrees; by default that of the rung's arithmetic.",
)
@trusted_option
@as_json
def bisect(
    spec: str | None,
    target: str | None,
    sets: tuple[str, ...],
    trusted: "Trust | None",
    as_json: bool,
    **given: Any,
) -> None:
    """Find the first tensor at which a rung of the parity ladder leaves the one before it.

    DIR_OR_SPEC may be a bundle. Exit 3 where there is one, 0 where every rung agrees, 5 where none
    could be compared.
    """
    from kdcompile import api

    named = spec_or_bundle(spec, target, sets, trusted)
    found = api.bisect(named, target=target, sets=sets, **given)
    show(found, as_json, lambda found: found.text())
    sys.exit(found.exit_code)
