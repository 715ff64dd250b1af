"""Output of the commands: JSON documents, texts and tables on standard output."""

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kdcompile.core.escape import plain_lines
from kdcompile.core.logs import is_quiet

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A dataclass by the JSON Schema that `kdcompile schema --of` derives from it."""
    if not is_dataclass(value):
        return value
    from pydantic import TypeAdapter

    return TypeAdapter(type(value)).dump_python(value, by_alias=True, warnings=False)


def echo_json(value: Any, indent: int | None = 1) -> None:
    """One JSON document on standard output, indented; a number that JSON has not is null.

    `##[` in a string, which a CI system might obey (`kdcompile.ci.stream`), is escaped. Without
    `indent` it is one line, of many documents.
    """
    text = json.dumps(to_json(value), default=_json_value)
    plain = json.loads(text, parse_constant=lambda _: None)
    text = json.dumps(plain, indent=indent, sort_keys=True, allow_nan=False)
    click.echo(re.sub(r"##(?=\w*\[)", r"#\\u0023", text))


def _json_value(value: Any) -> Any:
    return to_json(value) if is_dataclass(value) else str(value)


def show(found: T, as_json: bool, lines: Callable[[T], Iterable[str]]) -> None:
    """Print a result: as one JSON document, or its lines of text, with what names hold escaped."""
    if as_json:
        echo_json(found)
    else:
        echo_text("\n".join(map(plain_lines, lines(found))))


def show_table(table: "Table", lines: Iterable[str] = ()) -> None:
    """Print a table and lines below it, unwrapped unless standard output is a terminal.

    The cells are text and no markup; whoever fills them escapes names.
    """
    from rich.console import Console

    out = sys.stdout
    width = None if out.isatty() else 200
    Console(file=out, width=width, highlight=False, markup=False, emoji=False).print(table)
    for line in lines:
        click.echo(plain_lines(line))


def tell(text: str) -> None:
    """A line on standard error, if the user wants more than warnings."""
    if not is_quiet():
        click.echo(plain_lines(text), err=True)


def echo_text(text: str) -> None:
    """Print text; on a terminal, lines that are longer than it are broken between words.

    A fix stays on its line, so that the command in it can be copied.
    """
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
        text = "\n".join(broken(line, width) for line in text.split("\n"))
    click.echo(text)


def broken(line: str, width: int) -> str:
    """A line in lines of at most `width` characters, unless a word is longer than that."""
    if len(line) <= width or "fix:" in line:
        return line
    first = re.match(r" *\S+  +", line)  # the others begin below a table's second column
    hang = first.end() if first and first.end() < width // 2 else 2
    return textwrap.fill(
        line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False
    )
