"""A report for the terminal."""

import textwrap
from collections.abc import Sequence

from kdcompile.bundle import facts, headline
from kdcompile.bundle.report.tiles import what_is_open
from kdcompile.core.errors import plain
from kdcompile.core.report import Report, columns

WIDTH = 80


def text_summary(report: Report) -> str:
    """The verdict, the main numbers, the gates and what is open, for a terminal without colour."""
    lines = [f"{report.name} for {report.target}: {report.verdict}", ""]
    compared = headline.rows(report)
    if compared:
        lines += [*table([_narrow(headline.HEADS), *map(_narrow, compared)]), ""]
    rows = [
        (
            f"{facts.MARKS[g.verdict]} {g.verdict}",
            g.name + facts.optional(g),
            g.evidence,
            g.observed,
        )
        for g in report.gates
    ]
    lines += [*table([("  verdict", "gate", "evidence", "observed"), *rows]), ""]
    lines += _open(report)
    for text in (facts.scope(report), *headline.notes(report)):
        lines += _wrapped(text)
    for text in facts.warnings(report):
        lines += _wrapped(f"warning: {text}")
    if report.gates:
        lines += ["", "thresholds and reasons:"]
    for g in report.gates:
        reason = f"; {g.reason}" if g.reason else ""
        lines += _wrapped(f"  {g.name}: {g.threshold}{reason}")
    return "".join(f"{plain(line)}\n" for line in lines)


def _open(report: Report) -> list[str]:
    """What the verdict leaves open, and the one command that settles it, on a line of its own."""
    found = what_is_open(report)
    lines = _wrapped(f"open: {found.sentence} {facts.meaning(report)}")
    if found.command:
        lines += ["in the folder of the spec:", f"  {found.command}"]
    return [*lines, ""]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose last column is broken between words where 80 columns end."""
    before = columns([row[:-1] for row in rows])
    start = max(map(len, before)) + 2
    lines = []
    for first, row in zip(before, rows, strict=True):
        parts = textwrap.wrap(
            row[-1], max(WIDTH - start, 20), break_long_words=False, break_on_hyphens=False
        )
        lines.append(f"{first.ljust(start)}{parts[0] if parts else ''}".rstrip())
        lines += [" " * start + part for part in parts[1:]]
    return lines


def _narrow(row: Sequence[str]) -> tuple[str, ...]:
    """A row of the first table for 80 columns: the verdict is a mark in front of it."""
    what, teacher, student, change, threshold, verdict = row
    mark = facts.MARKS.get(verdict.split(" ")[0], " ")
    first = f"{mark} {what.removesuffix(headline.PREDICTED)}"  # the note below says it
    return first, teacher, student, change.replace(" faster", ""), threshold


def _wrapped(text: str) -> list[str]:
    """Lines of at most 80 columns; no word is cut."""
    indent = " " * (len(text) - len(text.lstrip(" ")) + 2)
    return textwrap.wrap(
        text, WIDTH, subsequent_indent=indent if text.startswith(("  ", "warning")) else "",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
