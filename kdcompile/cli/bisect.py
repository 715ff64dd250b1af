"""`bisect`: the tensor, the node and the module at which a form of the network goes wrong."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcompile.cli.options import as_json, echo_json, spec_options, via_option
from kdcompile.cli.parity import NOTHING, ladder_json, open_ladder
from kdcompile.cli.trust import trusted_option
from kdcompile.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK

if TYPE_CHECKING:
    from kdcompile.debug.locate import Finding
    from kdcompile.debug.variants import Ladder, Step


@click.command()
@spec_options
@via_option
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
    via: str | None,
    rung: str | None,
    limit: float | None,
    trusted: Path | None,
    as_json: bool,
) -> None:
    """Find the first tensor at which a rung of the parity ladder leaves the one before it.

    DIR_OR_SPEC may be a bundle. Exit 3 where there is one, 0 where every rung agrees, 5 where none
    could be compared.
    """
    from kdcompile.debug.variants import climb

    with open_ladder(spec, target, sets, via, trusted) as ladder:
        steps = climb(ladder)
        found = look(ladder, steps, rung, limit)
        compared = any(step.verdict in ("passed", "failed") for step in steps)
        code = EXIT_GATE if found else EXIT_OK if compared else EXIT_INCONCLUSIVE
        if as_json:
            finding = None if found is None else found.to_json()
            echo_json({**ladder_json(ladder, steps), "finding": finding, "exit_code": code})
        else:
            tell(ladder, steps, rung, found)
    sys.exit(code)


def look(
    ladder: "Ladder", steps: list["Step"], rung: str | None, limit: float | None
) -> "Finding | None":
    """What is found of one rung, by default of the first that fails; None where it agrees.

    Raises:
        KDError: `rung-unknown`, `rung-absent`, `bisect-inherited`, or `locate`'s.
    """
    from kdcompile.debug.locate import inherited, locate
    from kdcompile.debug.variant import find_rung

    failed = [i for i, step in enumerate(steps) if step.verdict == "failed"]
    if rung is not None:
        place = find_rung(ladder, rung)
        failed = [place] if steps[place].verdict == "failed" else []
    if not failed:
        return None
    suspect, step = ladder.rungs[failed[0]], steps[failed[0]]
    if step.inherits:
        raise inherited(steps, step)
    before = next(r for r in ladder.rungs if r.name == step.against)
    return locate(ladder, before, suspect, step, limit)


def tell(ladder: "Ladder", steps: list["Step"], rung: str | None, found: "Finding | None") -> None:
    """Print what was found, or that nothing was."""
    from kdcompile.debug.show import finding_lines, ladder_lines

    if found is not None:
        step = next(step for step in steps if step.name == found.rung)
        click.echo(f"{step.name} against {step.against}: {step.reason}")
        click.echo("\n".join(finding_lines(found)))
        others = [s.name for s in steps if s.verdict == "failed" and s.name != found.rung]
        if others:
            click.echo(f"failed too: {', '.join(others)}; name one with --rung")
        return
    click.echo("\n".join(ladder_lines(ladder, steps)))
    if all(step.verdict in ("reference", "absent") for step in steps):
        click.echo(f"inconclusive: {NOTHING}")
    elif rung is None:
        click.echo("every rung agrees with the one before it: there is nothing to search for")
    else:
        click.echo(f"the rung {rung} agrees with the one before it: there is nothing to search for")
