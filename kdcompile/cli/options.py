"""Options that several commands share."""

import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kdcompile.core.logs import is_quiet, set_level

F = TypeVar("F", bound=Callable[..., Any])

SET = (
    "Override a field of the spec. A path is relative to the current folder, code (FILE.py:NAME) "
    "to the spec's."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")


def spec_options(command: F) -> F:
    """SPEC, --target and --set."""
    command = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help=SET)(command)
    command = click.option("--target", help="Device name; see `kdcompile targets`.")(command)
    return click.argument("spec", required=False, metavar="[DIR_OR_SPEC]")(command)


via_option = click.option(
    "--via",
    metavar="PLACE",
    help="Where the engine is built and timed: python:PATH or ssh://[user@]host[:port].",
)


sign_option = click.option(
    "--sign",
    "key",
    metavar="KEY.pem",
    type=click.Path(path_type=Path),
    help="Sign the bundle with an Ed25519 private key.",
)


def sign(folder: Path, key: Path | None) -> None:
    """Sign a bundle where a key is given, and say so on standard error."""
    if key is not None:
        from kdcompile.bundle.signature import sign_bundle

        tell(f"signed by {sign_bundle(folder, key)}")


def tell(text: str) -> None:
    """A line on standard error, if the user wants more than warnings."""
    if not is_quiet():
        click.echo(text, err=True)


def _tell(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(context: click.Context, option: click.Parameter, asked: bool) -> None:
        if asked and os.environ.get("RANK", "0") == "0":  # of torchrun the first process talks
            set_level(level)

    return callback


def add_levels(command: click.Command) -> None:
    """-q and -v for a command, and for each of its own commands."""
    for names, level, text in (
        (["-q", "--quiet"], logging.WARNING, "Tell warnings and errors only."),
        (["-v", "--verbose"], logging.DEBUG, "Tell more of what is done, and why."),
    ):
        option = click.Option(
            names, is_flag=True, expose_value=False, help=text, callback=_tell(level)
        )
        command.params.append(option)
    for one in command.commands.values() if isinstance(command, click.Group) else ():
        add_levels(one)


def echo_json(value: Any) -> None:
    """One JSON document on standard output, indented; a number that JSON has not is null.

    `##[` in a string, which a CI system might obey (`kdcompile.ci.stream`), is escaped.
    """
    plain = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
    text = json.dumps(plain, indent=1, sort_keys=True, allow_nan=False)
    click.echo(re.sub(r"##(?=\w*\[)", r"#\\u0023", text))
