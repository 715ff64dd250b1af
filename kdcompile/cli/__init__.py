"""Command line: commands parse, call `kdcompile.api` and print; heavy libraries load inside."""

import logging
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import click

from kdcompile import __version__
from kdcompile.ci import stream
from kdcompile.cli.baseline import baseline
from kdcompile.cli.bench import bench, compare
from kdcompile.cli.bisect import bisect
from kdcompile.cli.build import build, make_stage_command, plan
from kdcompile.cli.bundle import bundle
from kdcompile.cli.delta import delta
from kdcompile.cli.options import add_levels
from kdcompile.cli.plugins import plugins, recipes
from kdcompile.cli.run import run
from kdcompile.cli.stopping import Stop, stoppable
from kdcompile.cli.targets import targets
from kdcompile.cli.tools import clean, doctor, init, report, schema
from kdcompile.cli.verify import verify
from kdcompile.core.disk import disk_error
from kdcompile.core.errors import EXIT_FIXABLE, KDError
from kdcompile.core.escape import plain_lines
from kdcompile.core.logs import begin
from kdcompile.core.optional import keep_caches_together, silence

STAGE_COMMANDS = {
    "search": "design the student for the target",
    "distill": "train the student from the teacher",
    "export": "write the student as ONNX",
    "calibrate": "find int8 ranges and insert Q/DQ",
    "compile": "choose the precision, build the engine or the board's build kit",
}

PRINTERS = ("click", "rich")  # the packages that write to standard output


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
    bundle, verify, bisect, bench, compare, baseline, delta, run, targets, recipes, plugins, report,
    doctor, schema, clean,
):  # fmt: skip
    cli.add_command(_command)


add_levels(cli)


def main() -> None:
    """Entry point: errors become a block on standard error and their exit code."""
    follower = os.environ.get("RANK", "0") != "0"  # of torchrun; the first process talks for all
    silence()
    keep_caches_together()
    begin(logging.WARNING if follower else logging.INFO)
    with stream.guarded(sys.argv), stoppable() as stop:
        _run(stop)


def _run(stop: Stop) -> None:
    """The command; every error becomes its block and exit code."""
    try:
        stop.begin()
        _refuse_lost_folder()
        with _written():
            cli(standalone_mode=False)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as usage:
        said = StringIO()  # it repeats words, which the shell may have found as names of files
        usage.show(said)
        click.echo(plain_lines(said.getvalue().rstrip("\n")), err=True)
        sys.exit(usage.exit_code)
    except (click.Abort, KeyboardInterrupt) as stopped:
        told = stopped.args or getattr(stopped.__cause__, "args", ())  # click raises its own
        click.echo(stop.line(*map(str, told[:1])), err=True)
        sys.exit(stop.exit_code)
    except BrokenPipeError:  # whoever read the results has left, as `head` does
        _drop_output()
        sys.exit(EXIT_FIXABLE)
    except Exception as error:
        if "--debug" in sys.argv or os.environ.get("KDCOMPILE_DEBUG") == "1":
            raise
        from kdcompile.cli.internal import unforeseen

        found = error if isinstance(error, KDError) else disk_error(error) or unforeseen(error)
        click.echo(str(found), err=True)
        sys.exit(found.exit_code)


def _refuse_lost_folder() -> None:
    """Refuse a current folder that was removed: no path is relative to it.

    Raises:
        KDError: `folder-gone`.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise KDError(
            "folder-gone",
            f"the current folder cannot be found: {error.strerror}",
            where=os.environ.get("PWD", os.curdir),
            fix="change to a folder that is there (cd), then run the same command again",
        ) from error


@contextmanager
def _written() -> Iterator[None]:
    """Write out all that was printed, while it can still be told that this fails.

    Raises:
        KDError: `output-unwritable`.
        BrokenPipeError: whoever read it has left.
    """
    try:
        yield
    except OSError as error:
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        writer = next(file for file in reversed(frames) if file != stream.__file__)
        if Path(writer).parent.name not in PRINTERS or isinstance(error, BrokenPipeError):
            raise
        raise _unprinted(error) from error
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unprinted(error) from error


def _unprinted(error: OSError) -> KDError:
    _drop_output()
    return KDError(
        "output-unwritable",
        f"the results cannot be written: {error.strerror}",
        where="standard output",
        fix="free some space there, or send standard output elsewhere",
    )


def _drop_output() -> None:
    """Let go of what could not be printed: the interpreter would try again as it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
