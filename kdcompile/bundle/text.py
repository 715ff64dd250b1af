"""A report for the terminal."""

import textwrap
from collections.abc import Sequence

from kdcompile.bundle import facts, headline
from kdcompile.core.errors import plain
from kdcompile.core.report import Report, columns

WIDTH = 80


def text_summary(report: Report) -> str:
    """The verdict, the main numbers and the gates for a terminal, without colour."""
    lines = [f"{report.name} for {report.target}: {report.verdict}", ""]
    compared = headline.rows(report)
    if compared:
        lines += columns([_narrow(headline.HEADS), *map(_narrow, compared)])
        lines += [part for note in headline.notes(report) for part in _wrapped(note)] + [""]
    for text in (facts.meaning(report), facts.scope(report)):
        lines += _wrapped(text)
    for text in facts.warnings(report):
        lines += _wrapped(f"warning: {text}")
    rows = [
        (
            f"{facts.MARKS[g.verdict]} {g.verdict}",
            g.name + facts.optional(g),
            g.evidence,
            g.observed,
        )
        for g in report.gates
    ]
    lines += ["", *columns([("  verdict", "gate", "evidence", "observed"), *rows])]
    if report.gates:
        lines += ["", "thresholds and reasons:"]
    for g in report.gates:
        reason = f"; {g.reason}" if g.reason else ""
        lines += _wrapped(f"  {g.name}: {g.threshold}{reason}")
    return "".join(f"{plain(line)}\n" for line in lines)


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
