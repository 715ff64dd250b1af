"""Command `delta`: a student's update as a small file, made here and applied on the device."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcompile.cli.options import PATH, as_json
from kdcompile.cli.terminal import echo_json
from kdcompile.core.errors import EXIT_GATE, EXIT_INCONCLUSIVE, EXIT_OK, plain

if TYPE_CHECKING:
    from kdcompile.config.spec import Spec
    from kdcompile.delta.applying import Applied, Made

EXITS = {"passed": EXIT_OK, "failed": EXIT_GATE, "inconclusive": EXIT_INCONCLUSIVE}


def _share(context: click.Context, option: click.Parameter, text: str) -> float:
    """0.1 of `10%`; over 0, at most 100 %."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?)%", text.strip(), re.ASCII)
    if found is None or not 0 < float(found[1]) <= 100:
        raise click.BadParameter(f"{text!r} is no percentage over 0%, such as 0.5%")
    return float(found[1]) / 100


spec_option = click.option(
    "--spec",
    metavar="DIR_OR_SPEC",
    help="Spec of the student, whose images evaluate the new weights.",
)
loss_option = click.option(
    "--loss",
    callback=_share,
    metavar="PERCENT",
    default="0.5%",
    show_default=True,
    help="Largest loss of the metric, with its 95 % bound; points if the metric is a rate.",
)


@click.group()
def delta() -> None:
    """Deliver a student's update as a small change of the weights that devices have."""


@delta.command("make")
@click.argument("base", type=PATH)
@click.argument("new", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The delta.")
@spec_option
@click.option(
    "--size",
    callback=_share,
    metavar="PERCENT",
    default="10%",
    show_default=True,
    help="Largest size of the file as a share of the new weights in fp16.",
)
@loss_option
@as_json
def make_delta(
    base: Path,
    new: Path,
    output: Path,
    spec: str | None,
    size: float,
    loss: float,
    as_json: bool,
) -> None:
    """Write the smallest change from BASE to NEW that is as accurate as NEW.

    BASE and NEW are weights of one architecture: student.safetensors, or the folder of a distill
    stage. Exit 3 where size and loss cannot both be had, 5 where too few images decide; no file is
    written then. Without --spec the file is as large as --size allows, and accuracy is not tested.
    """
    from kdcompile.delta import make

    made = make(base, new, output, spec=_spec(spec), size=size, loss=loss)
    if not as_json:
        _show_tensors(made)
        click.echo(f"{made.bytes} bytes, {made.share:.1%} of the {made.full_bytes} in fp16")
    _end(made, as_json)


@delta.command("apply")
@click.argument("base", type=PATH)
@click.argument("delta_file", metavar="DELTA", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The new weights.")
@spec_option
@click.option("--new", type=PATH, help="With --spec: weights to compare the result with.")
@loss_option
@as_json
def apply_delta(
    base: Path,
    delta_file: Path,
    output: Path,
    spec: str | None,
    new: Path | None,
    loss: float,
    as_json: bool,
) -> None:
    """Write the weights that DELTA makes of BASE, checked by their hash.

    With --spec its test images must also show them no worse than BASE, or than --new; exit 3 where
    they are, 5 where too few images decide; no file is written then.
    """
    if new is not None and spec is None:
        raise click.UsageError("--new is compared on images: name their --spec too")
    from kdcompile.delta import apply

    _end(apply(base, delta_file, output, spec=_spec(spec), new=new, loss=loss), as_json)


def _spec(argument: str | None) -> "Spec | None":
    from kdcompile.config.load import find_spec, load_spec

    return None if argument is None else load_spec(find_spec(argument))


def _show_tensors(made: "Made") -> None:
    click.echo(f"{'tensor':<40} {'kind':<6} {'bytes':>9} {'error':>8}")
    for name, one in made.tensors.items():
        how = f"{one.bits} bits" if one.bits else f"rank {one.rank}" if one.rank else ""
        row = f"{plain(name):<40} {one.kind:<6} {one.bytes:>9} {one.error:>8.2g}  {how}"
        click.echo(row.rstrip())


def _end(found: "Made | Applied", as_json: bool) -> None:
    """Print what was found; leave with the verdict's exit code."""
    if as_json:
        echo_json(found)
    else:
        click.echo(f"{found.verdict}: {plain(found.reason)}")
        wrote = "nothing written" if found.output is None else f"wrote {plain(found.output)}"
        click.echo(wrote)
    sys.exit(EXITS[found.verdict])
