"""A report as Markdown, and the tables that its page shows too."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from kdcompile.bundle import facts, headline, preparation
from kdcompile.core import escape
from kdcompile.core.report import Report

GATE_HEADS = ("gate", "verdict", "evidence", "threshold", "observed", "reason")
NUMBER_HEADS = (
    "measurement", "value", "evidence", "machine", "backend", "precision", "mode", "n",
)  # fmt: skip
OPTIONAL = (
    "Engines", "Layers", "Mixed precision", "Refinements", "Sensitivity to int8",
    preparation.RATES, preparation.RECIPES,
)  # fmt: skip
CANDIDATE_HEADS = (
    "precision", "latency, ms", "evidence", "validation metric", "passed", "why",
)  # fmt: skip
DROPPED_HEADS = ("image", "split", "twin")


def gate_rows(report: Report) -> list[tuple[str, ...]]:
    """The gates as texts, in the order of `GATE_HEADS`."""
    return [
        (g.name + facts.optional(g), g.verdict, g.evidence, g.threshold, g.observed, g.reason)
        for g in report.gates
    ]


def number_rows(report: Report) -> list[tuple[str, ...]]:
    """The measurements as texts, in the order of `NUMBER_HEADS`."""
    return [
        (facts.label(m.name), facts.amount(m), m.evidence, m.machine, facts.backend(m),
         m.precision, m.mode, "" if m.n is None else str(m.n))
        for m in report.measurements
    ]  # fmt: skip


def part_heads(report: Report) -> tuple[str, ...]:
    """The heads of the accuracy by parts of the test images."""
    metric = str(facts.task(report)["metric"]).upper()
    metric = {"TOP1": "top-1", "MIOU": "IoU", "MAP": "AP", "MAP50": "AP50"}.get(metric, metric)
    return (facts.words(report).parts[2], "images", f"teacher {metric}", f"student {metric}")


def part_texts(report: Report) -> list[tuple[str, ...]]:
    """The accuracy by parts as texts, in the order of `part_heads`."""
    return [
        (name, facts.number(n), *(facts.metric_text(report, v) for v in values))
        for name, n, *values in facts.part_rows(report)
    ]


def further(report: Report) -> list[tuple[str, str, list[str], list[list[str]]]]:
    """The task's own tables: title, note, heads and rows as texts."""
    return [
        (table["title"], table["note"], list(table["heads"]),
         [[row[0], *(facts.number(value) for value in row[1:])] for row in table["rows"]])
        for table in report.details.get("tables") or []
    ]  # fmt: skip


def markdown(report: Report) -> str:
    """The report as Markdown: the same facts as the page, without pictures."""
    details = report.details
    candidates = [
        (c["precision"] + (" (ships)" if c["chosen"] else ""),
         *(c[k] for k in ("latency", "evidence", "metric", "passed", "why")))
        for c in facts.candidates(report)
    ]  # fmt: skip
    examples = [
        (facts.label(row["kind"]),
         *(facts.number(row.get(k)) for k in ("name", "true", "predicted", "teacher")))
        for row in details.get("examples") or []
    ]  # fmt: skip
    dropped = [(d["name"], d["split"], d["twin"]) for d in details.get("dropped") or []]
    title = facts.words(report).parts[1]
    parts = [
        f"# {escape.markdown(report.name)} for {escape.markdown(report.target)}",
        f"**{escape.markdown(report.verdict)}** (exit {report.exit_code})",
        facts.meaning(report) + " " + facts.scope(report),
        *(f"**Warning**: {escape.markdown(text)}" for text in facts.warnings(report)),
        *_compared(report),
        _section("Gates", GATE_HEADS, gate_rows(report)),
        _section("Numbers", NUMBER_HEADS, number_rows(report)),
        f"## Training\n\n{escape.markdown(facts.progress(report) or facts.UNKNOWN)}",
        _section(f"Accuracy {title[0].lower()}{title[1:]}", part_heads(report), part_texts(report)),
        *(f"{_section(one[0], one[2], one[3])}\n\n{one[1]}" for one in further(report)),
        _section("Best, median and worst image",
                 ("image", "name", "true", "student", "teacher"), examples),
        _section("Worst images", facts.worst_heads(report), facts.worst(report)),
        _section("Precisions", CANDIDATE_HEADS, candidates),
    ]  # fmt: skip
    for title, rows in tables(report).items():
        parts.append(_section(title, ("what", "value"), rows))
    parts.append(_section("Dropped duplicates", DROPPED_HEADS, dropped, "none"))
    commands = "\n".join(f"    {escape.plain(line)}" for line in reproduction(report))
    parts.append(f"## How to reproduce\n\n{commands}")
    return "\n\n".join(parts) + "\n"


def _compared(report: Report) -> list[str]:
    """The first table, with what its latencies rest on."""
    rows = headline.rows(report)
    if not rows:
        return []
    notes = (escape.markdown(note) for note in headline.notes(report))
    return [_section("Teacher and student", headline.HEADS, rows), *notes]


def _section(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    empty: str = facts.UNKNOWN,
) -> str:
    if not rows:
        return f"## {title}\n\n{empty}"
    lines = [heads, ["---"] * len(heads), *(map(escape.markdown, row) for row in rows)]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(report: Report) -> dict[str, list[tuple[str, str]]]:
    """The parts of the report that are names and values, by title."""
    details = report.details
    choice = {
        key: facts.metric_text(report, value) if key in ("teacher_metric", "limit") else value
        for key, value in (details.get("choice") or {}).items()
        if key != "candidates"
    }
    tables = {
        "Compilation": facts.flat(choice),
        "Engines": facts.flat(details.get("engines")),
        "Layers": facts.layers(report),
        "Mixed precision": facts.flat(details.get("mixed")),
        "Refinements": facts.flat(details.get("refinements")),
        "Sensitivity to int8": facts.sensitivity(report),
        "Teacher": facts.flat(details.get("teacher")),
        "Distillation": facts.flat(_without_shown(details.get("distill"))),
        **preparation.tables(report),
        "Parity": facts.flat(details.get("parity")),
        "Calibration": facts.flat(_without_shown(details.get("calibration"))),
        "Environment": facts.flat(report.environment),
    }
    return {title: rows for title, rows in tables.items() if rows or title not in OPTIONAL}


def _without_shown(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """The distillation's result without what the report has a place of its own for."""
    shown = ("dropped", "warnings", *preparation.SHOWN)
    return {k: v for k, v in (value or {}).items() if k not in shown}


def reproduction(report: Report) -> list[str]:
    """Commands that make and use the bundle again."""
    given = "sample.npz" if facts.takes_tensors(report) else "photo.jpg"
    return [
        f"kdcompile build --target {shlex.quote(report.target)}   # in the folder of the spec",
        "kdcompile verify .                 # in the folder of this report",
        f"kdcompile run . {given}",
        f"python3 infer.py {given}",
    ]
