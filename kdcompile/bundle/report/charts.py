"""The charts of a report: speed and accuracy, where the time goes, accuracy, training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from kdcompile.bundle import curves, facts, figures
from kdcompile.bundle.box_figures import precision_recall
from kdcompile.core.report import Report

MOST_BARS = 20
MARKERS = "osD^vP*h"
BOUNDS = {  # what holds a kernel up, in words and with its colour
    "arithmetic": ("limited by arithmetic", figures.LIGHT.terms[0]),
    "memory": ("limited by memory", figures.LIGHT.terms[1]),
    "launch": ("limited by launches", figures.LIGHT.terms[5]),
}


def metric_words(report: Report, metric: str | None = None) -> str:
    """The task's metric, or another, in words."""
    metric = metric or str(facts.task(report)["metric"])
    return facts.METRICS.get(metric, metric)


def charts(report: Report, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each chart that there is data for, by its name; `losses` is a list."""
    found: dict[str, Any] = {
        "speed": speed_and_accuracy(report),
        "time": where_time_goes(report),
        **_training(report, metrics),
        **_accuracy(report),
    }
    return {name: chart for name, chart in found.items() if chart}


def speed_and_accuracy(report: Report) -> figures.Chart | None:
    """Latency on the target against the validation metric, of the teacher and each precision."""
    choice, speed = report.details.get("choice") or {}, report.details.get("target_speed") or {}
    rows = [
        row for row in choice.get("candidates") or []
        if row.get("latency_ms") is not None and row.get("val_metric") is not None
    ]  # fmt: skip
    if not rows:
        return None
    spans = {
        m.precision: (m.low, m.high) for m in report.measurements
        if m.name == "student latency" and m.evidence == rows[0].get("evidence")
    }  # fmt: skip
    how = f", {rows[0]['evidence']}" if rows[0].get("evidence") else ""
    theme = figures.LIGHT
    with figures.style(theme):
        words = metric_words(report, choice.get("metric"))
        figure, axes = figures.chart(f"latency, ms{how}", f"validation {words}")
        if choice.get("limit") is not None:
            axes.axhline(choice["limit"], c=theme.ink, lw=1, ls="--", label="accuracy limit")
        y, x = choice.get("teacher_metric"), speed.get("teacher_ms")
        if x is not None and y is not None and speed.get("evidence") == rows[0].get("evidence"):
            name = figures.printable(f"teacher {speed['teacher_precision']}")
            axes.plot([x], [y], "X", ms=10, c=theme.teacher, label=name)
        for index, row in enumerate(rows):
            _candidate(axes, index, row, spans.get(row["precision"]), choice.get("precision"))
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [n * 10.0**e for e in range(-4, 6) for n in (1, 2, 5)]
        axes.set_xticks([t for t in ticks if low <= t <= high])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(y=0.12)
        figure.legend(loc="outside lower center", ncols=3, fontsize=9)
        return figures.svg(figure, "Latency on the target against accuracy of each precision")


def _candidate(
    axes: Any, index: int, row: Mapping[str, Any], span: Any, chosen: str | None
) -> None:
    """A precision's point with its interval; the one that ships is filled."""
    theme, ships = figures.LIGHT, row["precision"] == chosen
    x, y = row["latency_ms"], row["val_metric"]
    if span and None not in span and span[0] <= x <= span[1]:
        axes.plot(span, [y, y], c=theme.student, lw=1, alpha=0.5)
    label = f"{row['precision']}{' (ships)' if ships else ''}"
    axes.plot(
        [x], [y], MARKERS[index % len(MARKERS)], ms=9 if ships else 7, c=theme.student,
        mfc=theme.student if ships else theme.paper, mew=1.6, label=figures.printable(label),
    )  # fmt: skip


def where_time_goes(report: Report) -> figures.Chart | None:
    """Milliseconds by kind of layer of both networks on one scale, split by what limits them."""
    found = report.details.get("time")
    if not found:
        return None
    kinds: dict[str, float] = {}
    for who in ("teacher", "student"):
        for row in found[who]:
            kinds[row["kind"]] = max(kinds.get(row["kind"], 0.0), row["ms"])
    names = sorted(kinds, key=lambda kind: -kinds[kind])
    theme = figures.LIGHT
    with figures.style(theme):
        height = 1.5 + 0.55 * len(names)
        figure, axes = figures.chart(f"milliseconds, {found['evidence']}", "", height)
        places, labels = [], []
        for index, kind in enumerate(names):
            for offset, who in ((-0.2, "teacher"), (0.2, "student")):
                _stacked(axes, index + offset, [r for r in found[who] if r["kind"] == kind])
                places.append(index + offset)
                labels.append(figures.printable(f"{facts.label(kind)}, {who}"))
        axes.set_yticks(places, labels, fontsize=9)
        axes.invert_yaxis()
        axes.set_xlim(0)
        axes.grid(axis="y", visible=False)
        handles = [Patch(color=colour, label=text) for text, colour in BOUNDS.values()]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9)
        return figures.svg(figure, "Predicted time by kind of layer, teacher and student")


def _stacked(axes: Any, place: float, rows: Sequence[Mapping[str, Any]]) -> None:
    left = 0.0
    for bound, (_, colour) in BOUNDS.items():
        ms = sum(row["ms"] for row in rows if row["bound"] == bound)
        if ms:
            axes.barh(place, ms, 0.36, left=left, color=colour)
            left += ms
    axes.text(left, place, f" {left:.3g}", va="center", fontsize=8)


def _training(report: Report, metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    key = f"val_{facts.task(report)['metric']}"
    teacher = (report.details.get("teacher") or {}).get(key)
    found: dict[str, Any] = {}
    if any(row.get(key) is not None and np.isfinite(row[key]) for row in metrics):
        named = (key, metric_words(report))
        found["validation"] = curves.validation_curve(metrics, named, teacher)
    if any(row.get("loss") is not None for row in metrics):
        found["losses"] = curves.loss_curves(metrics)
    return found


def _accuracy(report: Report) -> dict[str, Any]:
    points, words = facts.predictions(report), facts.words(report)
    kind, found = facts.task(report)["kind"], {}
    if points and kind == "classification":
        found["predictions"] = figures.confusion(points, facts.task(report)["classes"])
    elif points and kind != "generic" and not facts.is_of_records(report):
        found["predictions"] = figures.scatter(points, words.prediction)
    if report.details.get("curves"):
        found["curves"] = precision_recall(report.details["curves"])
    rows = [
        (name, teacher, student)
        for name, _, teacher, student in facts.part_rows(report)
        if teacher is not None and student is not None
    ]
    if rows:
        shown = sorted(rows, key=lambda row: row[2])[:MOST_BARS] if len(rows) > MOST_BARS else rows
        what = words.parts[2]
        what += f", the {MOST_BARS} of least accuracy" if len(rows) > MOST_BARS else ""
        found["bars"] = figures.bars(shown, (what, metric_words(report)))
    return found
