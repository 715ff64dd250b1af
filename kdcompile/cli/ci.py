"""The options `--ci` and `--ci-folder`, which every command that ends in a verdict may have."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
FOLDER = "kdcompile-ci"


def ci_options(command: F) -> F:
    """`--ci` and `--ci-folder`, as parameters `ci` and `ci_folder`; `ci_place` reads them."""
    command = click.option(
        "--ci-folder",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help=f"Folder of the reports of --ci; {FOLDER} by default.",
    )(command)
    return click.option(
        "--ci",
        is_flag=True,
        help="Write JUnit XML, a Markdown summary, metrics and JSON; annotate where GitHub runs.",
    )(command)


def ci_place(ci: bool, folder: Path | None) -> Path | None:
    """Where the reports go; None without `--ci`. A folder alone asks for them too."""
    if folder is not None:
        return folder
    return Path(FOLDER) if ci else None


def ci_stream(as_json: bool) -> TextIO:
    """Where annotations go: not between the lines of a JSON document."""
    return sys.stderr if as_json else sys.stdout
