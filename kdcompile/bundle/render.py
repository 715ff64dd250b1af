"""A report as Markdown and as one self-contained HTML page."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from kdcompile import __version__
from kdcompile.bundle import facts, figures
from kdcompile.bundle.overlay import overlay_png
from kdcompile.report import Report

GATE_HEADS = ("gate", "verdict", "evidence", "threshold", "observed", "reason")
NUMBER_HEADS = (
    "measurement", "value", "evidence", "machine", "backend", "precision", "mode", "n",
)  # fmt: skip
DENSITY_HEADS = ("true count", "images", "teacher MAE", "student MAE")
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


def markdown(report: Report) -> str:
    """The report as Markdown: the same facts as the page, without pictures."""
    details = report.details
    candidates = [
        (c["precision"] + (" (ships)" if c["chosen"] else ""),
         *(c[k] for k in ("latency", "evidence", "metric", "passed", "why")))
        for c in facts.candidates(report)
    ]  # fmt: skip
    density = [tuple(map(facts.number, row)) for row in facts.density_rows(report)]
    examples = [
        tuple(facts.number(row.get(k)) for k in ("kind", "name", "true", "predicted", "teacher"))
        for row in details.get("examples") or []
    ]
    dropped = [(d["name"], d["split"], d["twin"]) for d in details.get("dropped") or []]
    parts = [
        f"# {_cell(report.name)} for {_cell(report.target)}",
        f"**{_cell(report.verdict)}** (exit {report.exit_code})",
        facts.meaning(report) + " " + facts.scope(report),
        _section("Gates", GATE_HEADS, gate_rows(report)),
        _section("Numbers", NUMBER_HEADS, number_rows(report)),
        _section("Accuracy by crowd density", DENSITY_HEADS, density),
        _section("Best, median and worst image",
                 ("image", "name", "true", "student", "teacher"), examples),
        _section("Precisions", CANDIDATE_HEADS, candidates),
    ]  # fmt: skip
    for title, rows in _tables(report).items():
        parts.append(_section(title, ("what", "value"), rows))
    parts.append(_section("Dropped duplicates", DROPPED_HEADS, dropped, "none"))
    commands = "\n".join(f"    {line}" for line in reproduction(report))
    parts.append(f"## How to reproduce\n\n{commands}")
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    """Text that cannot end its table cell or become a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _section(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    empty: str = facts.UNKNOWN,
) -> str:
    if not rows:
        return f"## {title}\n\n{empty}"
    lines = [heads, ["---"] * len(heads), *([_cell(cell) for cell in row] for row in rows)]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _tables(report: Report) -> dict[str, list[tuple[str, str]]]:
    """The parts of the report that are names and values, by title."""
    details = report.details
    choice = {k: v for k, v in (details.get("choice") or {}).items() if k != "candidates"}
    return {
        "Compilation": facts.flat(choice),
        "Teacher": facts.flat(details.get("teacher")),
        "Distillation": facts.flat(_without_dropped(details.get("distill"))),
        "Parity": facts.flat(details.get("parity")),
        "Calibration": facts.flat(details.get("calibration")),
        "Environment": facts.flat(report.environment),
    }


def _without_dropped(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """The distillation's result without the duplicates, which have a table of their own."""
    return {k: v for k, v in (value or {}).items() if k != "dropped"}


def reproduction(report: Report) -> list[str]:
    """Commands that make and use the bundle again."""
    return [
        f"kdcompile build --target {report.target}   # in the folder of the spec",
        "kdcompile verify .                 # in the folder of this report",
        "kdcompile run . photo.jpg",
        "python3 infer.py photo.jpg",
    ]


def html(
    report: Report,
    examples: Path,
    metrics: Sequence[Mapping[str, Any]],
) -> str:
    """The report as one page that needs nothing else: no network, no script, no other file.

    Args:
        report: what to show.
        examples: the folder of `example_KIND.npz`: `pixels`, uint8 [H, W, C], and over the same
            area the densities `student` and `teacher`, float32 [h, w].
        metrics: the lines of `metrics.jsonl`.
    """
    environment = Environment(
        loader=PackageLoader("kdcompile.bundle"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        version=__version__,
        tone=facts.tone(report),
        meaning=facts.meaning(report),
        scope=facts.scope(report),
        marks=facts.MARKS,
        evidence=facts.EVIDENCE,
        gates=gate_rows(report),
        gate_heads=GATE_HEADS,
        numbers=number_rows(report),
        number_heads=NUMBER_HEADS,
        charts=_charts(report, metrics),
        examples=_examples(report, examples),
        density=[tuple(map(facts.number, row)) for row in facts.density_rows(report)],
        density_heads=DENSITY_HEADS,
        candidates=facts.candidates(report),
        candidate_heads=CANDIDATE_HEADS,
        tables=_tables(report),
        dropped=report.details.get("dropped") or [],
        dropped_heads=DROPPED_HEADS,
        commands=reproduction(report),
    )


def _charts(report: Report, metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Each chart that there is data for, in a light and a dark drawing."""
    teacher = report.details.get("teacher") or {}
    points = facts.predictions(report)
    bars = [
        (span, teacher_mae, student_mae)
        for span, _, teacher_mae, student_mae in facts.density_rows(report)
        if teacher_mae is not None and student_mae is not None
    ]
    charts: dict[str, dict[str, str]] = {}
    for name, theme in (("light", figures.LIGHT), ("dark", figures.DARK)):
        if metrics:
            charts.setdefault("loss", {})[name] = _data_uri(figures.loss_curves(metrics, theme))
        if any(row.get("val_mae") is not None for row in metrics):
            drawn = figures.validation_curve(metrics, teacher.get("val_mae"), theme)
            charts.setdefault("validation", {})[name] = _data_uri(drawn)
        if points:
            charts.setdefault("scatter", {})[name] = _data_uri(figures.scatter(points, theme))
        if bars:
            drawn = figures.density_bars(bars, theme)
            charts.setdefault("bars", {})[name] = _data_uri(drawn)
    return charts


def _examples(report: Report, folder: Path) -> list[dict[str, Any]]:
    """Best, median and worst image, each under the student's and the teacher's density."""
    shown = []
    for row in report.details.get("examples") or []:
        pictures: dict[str, str] = {}
        path = folder / f"example_{row['kind']}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as arrays:
                pixels, maps = arrays["pixels"], {w: arrays[w] for w in ("student", "teacher")}
            peak = max(float(density.max()) for density in maps.values())
            for who, density in maps.items():
                title = f"{who}: {facts.number(float(density.sum()))}"
                drawn = overlay_png(pixels, density, title, peak=peak)
                pictures[who] = _data_uri(drawn)
        texts = {k: facts.number(row.get(k)) for k in ("true", "predicted", "teacher")}
        shown.append({"kind": row["kind"], "name": row["name"], "pictures": pictures, **texts})
    return shown


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
