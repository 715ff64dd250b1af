"""The command line. Commands parse, call and print; heavy libraries load inside them."""

import logging
import os
import sys

import click

from kdcompile import __version__
from kdcompile.cli.baseline import baseline
from kdcompile.cli.bench import bench, compare
from kdcompile.cli.bisect import bisect
from kdcompile.cli.build import build, make_stage_command, plan
from kdcompile.cli.bundle import bundle
from kdcompile.cli.tools import clean, doctor, init, recipes, report, run, schema, targets
from kdcompile.cli.verify import verify
from kdcompile.errors import KDError

STAGE_COMMANDS = {
    "search": "design the student for the target",
    "distill": "train the student from the teacher",
    "export": "write the student as ONNX",
    "calibrate": "find int8 ranges and insert Q/DQ",
    "compile": "choose the precision, build the engine or the board's build kit",
}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kdcompile")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Compile a trained teacher network into a small, proven bundle for an edge device."""


for _command in (init, plan, build):
    cli.add_command(_command)
for _name, _help in STAGE_COMMANDS.items():
    cli.add_command(make_stage_command(_name, _help))
for _command in (
    bundle, verify, bisect, bench, compare, baseline, run, targets, recipes, report, doctor,
    schema, clean,
):  # fmt: skip
    cli.add_command(_command)


def main() -> None:
    """Entry point: errors become a block on standard error and their exit code."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    follower = os.environ.get("RANK", "0") != "0"  # of torchrun; the first process talks for all
    logging.getLogger("kdcompile").setLevel(logging.WARNING if follower else logging.INFO)
    try:
        cli(standalone_mode=False)
    except KDError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as usage:
        usage.show()
        sys.exit(usage.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; the next run goes on from the last finished step", err=True)
        sys.exit(130)
