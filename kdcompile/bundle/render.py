"""A report as Markdown and as one self-contained HTML page."""

import base64
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from kdcompile import __version__
from kdcompile.bundle import curves, facts, figures, headline, preparation
from kdcompile.bundle.box_figures import drawing_of, precision_recall
from kdcompile.bundle.figures import overlay_png, photo_png
from kdcompile.bundle.mask_figures import difference, mask_png
from kdcompile.core import escape
from kdcompile.core.arrays import read_arrays
from kdcompile.core.report import Report
from kdcompile.data.masks import IGNORED

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
MOST_BARS = 20


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
    for title, rows in _tables(report).items():
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


def _tables(report: Report) -> dict[str, list[tuple[str, str]]]:
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


def html(
    report: Report,
    examples: Path,
    metrics: Sequence[Mapping[str, Any]],
) -> str:
    """The report as one page that needs nothing else: no network, no script, no other file.

    Args:
        report: what to show.
        examples: the folder of `example_KIND.npz`: `pixels`, uint8 [H, W, C], and where the task
            has them, over the same area, the densities `student` and `teacher`, float32 [h, w].
        metrics: the lines of `metrics.jsonl`.
    """
    environment = Environment(
        loader=PackageLoader("kdcompile.bundle"),
        autoescape=True,
        finalize=lambda value: escape.visible(value) if type(value) is str else value,
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
        compared=headline.rows(report),
        compared_heads=headline.HEADS,
        compared_notes=headline.notes(report),
        gates=gate_rows(report),
        gate_heads=GATE_HEADS,
        numbers=number_rows(report),
        number_heads=NUMBER_HEADS,
        charts=_charts(report, metrics),
        examples=_examples(report, examples),
        worst=facts.worst(report),
        worst_heads=facts.worst_heads(report),
        of_records=facts.is_of_records(report),
        warnings=facts.warnings(report),
        progress=facts.progress(report),
        words=facts.words(report),
        metric=_metric_words(report),
        parts=part_texts(report),
        part_heads=part_heads(report),
        further=further(report),
        candidates=facts.candidates(report),
        candidate_heads=CANDIDATE_HEADS,
        tables=_tables(report),
        dropped=report.details.get("dropped") or [],
        dropped_heads=DROPPED_HEADS,
        commands=reproduction(report),
    )


def _metric_words(report: Report) -> str:
    metric = facts.task(report)["metric"]
    return facts.METRICS.get(metric, metric)


def _charts(report: Report, metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Each chart that there is data for, in a light and a dark drawing."""
    charts: dict[str, dict[str, str]] = {}
    for name, theme in (("light", figures.LIGHT), ("dark", figures.DARK)):
        for key, png in (*_training(report, metrics, theme), *_accuracy(report, theme)):
            charts.setdefault(key, {})[name] = _data_uri(png)
    return charts


def _training(
    report: Report, metrics: Sequence[Mapping[str, Any]], theme: figures.Theme
) -> Iterator[tuple[str, bytes]]:
    key = f"val_{facts.task(report)['metric']}"
    teacher = (report.details.get("teacher") or {}).get(key)
    if any(row.get("loss") is not None for row in metrics):
        yield "loss", curves.loss_curves(metrics, theme)
    if any(row.get(key) is not None for row in metrics):
        named = (key, _metric_words(report))
        yield "validation", curves.validation_curve(metrics, named, teacher, theme)


def _accuracy(report: Report, theme: figures.Theme) -> Iterator[tuple[str, bytes]]:
    points, words = facts.predictions(report), facts.words(report)
    if points and facts.task(report)["kind"] == "classification":
        yield "predictions", figures.confusion(points, facts.task(report)["classes"], theme)
    elif points and facts.task(report)["kind"] != "generic" and not facts.is_of_records(report):
        yield "predictions", figures.scatter(points, words.prediction, theme)
    if report.details.get("curves"):
        yield "curves", precision_recall(report.details["curves"], theme)
    rows = [
        (name, teacher, student)
        for name, _, teacher, student in facts.part_rows(report)
        if teacher is not None and student is not None
    ]
    if rows:
        shown = sorted(rows, key=lambda row: row[2])[:MOST_BARS] if len(rows) > MOST_BARS else rows
        what = words.parts[2]
        what += f", the {MOST_BARS} of least accuracy" if len(rows) > MOST_BARS else ""
        yield "bars", figures.bars(shown, (what, _metric_words(report)), theme)


def _examples(report: Report, folder: Path) -> list[dict[str, Any]]:
    """Best, median and worst image; under each network's density where there is one."""
    shown = []
    for row in report.details.get("examples") or []:
        path = folder / f"example_{row['kind']}.npz"
        pictures = _pictures(path, facts.task(report)) if path.is_file() else {}
        texts = {k: facts.number(row.get(k)) for k in ("true", "predicted", "teacher")}
        kind = facts.label(row["kind"])
        shown.append({"kind": kind, "name": row["name"], "pictures": pictures, **texts})
    return shown


def _pictures(path: Path, task: Mapping[str, Any]) -> dict[str, str]:
    """What is drawn of an example, by the words for it."""
    arrays = read_arrays(path)
    pixels, truth = arrays["pixels"], arrays.get("truth")
    maps = {who: arrays[who] for who in ("student", "teacher") if who in arrays}
    if not maps:
        return {"photo alone": _data_uri(photo_png(pixels))}
    if truth is not None and truth.dtype != np.uint8:
        return _things(pixels, maps, truth, task.get("classes"))
    if truth is not None:
        return _masks(pixels, maps, truth, task.get("classes"))
    peak = max(float(density.max()) for density in maps.values())
    return {
        f"density of the {who}": _data_uri(
            overlay_png(pixels, density, f"{who}: {facts.number(float(density.sum()))}", peak=peak)
        )
        for who, density in maps.items()
    }


def _things(
    pixels: NDArray[np.uint8],
    maps: Mapping[Any, NDArray[Any]],
    truth: NDArray[Any],
    classes: Sequence[str] | None,
) -> dict[str, str]:
    """The annotated boxes, or points, of a photo, and those of both networks."""
    draw, what = drawing_of(truth)
    drawn = {f"annotated {what}": draw(pixels, truth, "annotated", classes)}
    for who in ("teacher", "student"):
        drawn[f"{what} of the {who}"] = draw(pixels, maps[who], who, classes)
    return {what: _data_uri(png) for what, png in drawn.items()}


def _masks(
    pixels: NDArray[np.uint8],
    maps: Mapping[Any, NDArray[Any]],
    truth: NDArray[Any],
    classes: Sequence[str] | None,
) -> dict[str, str]:
    """The classes of a photo by its mask and by both networks, and where these differ."""
    drawn = {"mask": mask_png(pixels, truth, "mask", classes)}
    for who in ("teacher", "student"):
        drawn[f"classes of the {who}"] = mask_png(pixels, maps[who], who, classes)
    apart = difference(maps["student"], maps["teacher"], truth)
    share = float((apart != IGNORED).sum() / max(int((truth != IGNORED).sum()), 1))
    title = f"student and teacher differ: {share:.1%} of what is judged"
    drawn["difference of both"] = mask_png(pixels, apart, title, ("", "they differ"))
    return {what: _data_uri(png) for what, png in drawn.items()}


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
