"""Text for people on standard output, fitted to the terminal that shows it."""

import re
import shutil
import sys
import textwrap

import click


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
