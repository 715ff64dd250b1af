"""`--baseline BUNDLE`: judge the student beside the network of an earlier bundle too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def previous_option(command: F) -> F:
    """--baseline, as `baseline`."""
    return click.option(
        "--baseline",
        metavar="BUNDLE",
        type=click.Path(path_type=Path),
        help="An earlier bundle: its network runs on the same test images, and the student must "
        "be no worse ([gates] previous).",
    )(command)


def with_previous(sets: tuple[str, ...], baseline: Path | None) -> tuple[str, ...]:
    """The `--set` values, and before them the one that `--baseline` stands for."""
    if baseline is None:
        return sets
    path = str(baseline.resolve()).replace("\\", "\\\\").replace('"', '\\"')
    return (f'gates.previous.bundle="{path}"', *sets)
