"""The report's charts as PNG bytes, drawn without any global state of matplotlib."""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import MaxNLocator, NullFormatter
from PIL import Image

DPI = 144
POINTS_OF_A_CURVE = 300
FONT = "DejaVu Sans"  # matplotlib ships it, so that the report looks the same everywhere


@dataclass(frozen=True)
class Theme:
    """Colours of a chart: paper, ink, lines of the grid, teacher, student, loss terms."""

    paper: str
    ink: str
    grid: str
    teacher: str
    student: str
    terms: tuple[str, ...]


_TERMS = ("#3b82c4", "#c98a1b", "#8a63c9", "#2f9e77", "#c2577f", "#7d8590")
LIGHT = Theme("#ffffff", "#3d4450", "#e6e8ec", "#9aa3b0", "#0f7b6c", _TERMS)
DARK = Theme("#1b2027", "#b9c1cc", "#2c333d", "#77818f", "#35c2a9", _TERMS)


@contextmanager
def style(theme: Theme) -> Iterator[None]:
    """Draw with the theme whatever the user's matplotlibrc says."""
    values: dict[Any, Any] = {
        "font.family": FONT,
        "font.size": 9,
        "text.color": theme.ink,
        "text.parse_math": False,
        "axes.facecolor": theme.paper,
        "axes.edgecolor": theme.grid,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": DPI,
        "figure.facecolor": theme.paper,
        "grid.color": theme.grid,
        "legend.frameon": False,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(values)
        yield


def png(figure: Figure) -> bytes:
    """The figure as an opaque PNG without metadata."""
    canvas: Any = FigureCanvasAgg(figure)  # matplotlib's Agg has no types
    canvas.draw()
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@cache
def _drawable() -> frozenset[int]:
    return frozenset(FT2Font(findfont(FontProperties(family=FONT))).get_charmap())


def printable(text: str) -> str:
    """The text with `?` for each character that the font has no glyph for."""
    return "".join(c if ord(c) in _drawable() else "?" for c in text)


def loss_curves(metrics: Sequence[Mapping[str, Any]], theme: Theme) -> bytes:
    """The loss and its terms over training steps.

    Args:
        metrics: the lines of `metrics.jsonl`.
        theme: colours.
    """
    series: dict[str, list[tuple[float, float]]] = {}
    for row in metrics:
        terms = row.get("terms") or {}
        named = {"total": row.get("loss"), **(terms if len(terms) > 1 else {})}
        for name, value in named.items():
            if value is not None:
                series.setdefault(name, []).append((row["step"], value))
    with style(theme):
        figure, axes = _chart("step", "loss")
        colours = [theme.ink, *theme.terms]
        for index, (name, pairs) in enumerate(series.items()):
            points = _thinned(np.asarray(pairs, dtype=np.float64))
            colour = colours[index % len(colours)]
            axes.plot(points[:, 0], points[:, 1], lw=1.2, c=colour, label=printable(name))
        if all(value > 0 for pairs in series.values() for _, value in pairs):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if series:
            axes.legend(fontsize=8)
        return png(figure)


def validation_curve(
    metrics: Sequence[Mapping[str, Any]], teacher_mae: float | None, theme: Theme
) -> bytes:
    """Validation MAE over training steps.

    Args:
        metrics: the lines of `metrics.jsonl`; those with `val_mae` count.
        teacher_mae: the teacher's MAE on the same images, drawn as a line.
        theme: colours.
    """
    rows = [row for row in metrics if row.get("val_mae") is not None]
    with style(theme):
        figure, axes = _chart("step", "mean absolute error")
        steps, errors = [row["step"] for row in rows], [row["val_mae"] for row in rows]
        axes.plot(steps, errors, "o-", ms=3, c=theme.student, label="student")
        if teacher_mae is not None:
            axes.axhline(teacher_mae, c=theme.teacher, ls="--", label="teacher")
        axes.set_ylim(bottom=0)
        axes.legend()
        return png(figure)


def _chart(x: str, y: str, height: float = 3.4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, height), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    return figure, axes


def _thinned(points: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, Any]:
    """Means over neighbouring steps, so that a long training is a readable line."""
    parts = np.array_split(points, min(len(points), POINTS_OF_A_CURVE))
    return np.stack([part.mean(axis=0) for part in parts])


def scatter(predictions: Sequence[Mapping[str, Any]], theme: Theme) -> bytes:
    """Predicted against true counts of the test images, for teacher and student."""
    with style(theme):
        figure, axes = _chart("true count", "predicted count", 4.4)
        true = [row["true"] for row in predictions]
        size = 26 if len(predictions) < 80 else 14
        for who, marker, colour, line in (
            ("teacher", "x", theme.teacher, 1),
            ("student", "o", theme.student, 0),
        ):
            seen = [row[who] for row in predictions]
            axes.scatter(
                true, seen, size, c=colour, marker=marker, alpha=0.75, linewidths=line, label=who
            )
        counts = [row[who] for row in predictions for who in ("true", "teacher", "student")]
        reach = 1.05 * max([1.0, *counts])
        axes.plot([0, reach], [0, reach], c=theme.ink, lw=0.8, ls="--")
        axes.set(xlim=(0, reach), ylim=(0, reach))
        axes.set_aspect("equal")
        axes.legend(loc="upper left")
        return png(figure)


def density_bars(rows: Sequence[tuple[str, float, float]], theme: Theme) -> bytes:
    """Mean absolute error by crowd density.

    Args:
        rows: (label of the range, the teacher's MAE, the student's MAE).
        theme: colours.
    """
    with style(theme):
        figure, axes = _chart("true count of the image", "mean absolute error", 4.4)
        place = np.arange(len(rows))
        axes.bar(place - 0.2, [r[1] for r in rows], 0.38, color=theme.teacher, label="teacher")
        axes.bar(place + 0.2, [r[2] for r in rows], 0.38, color=theme.student, label="student")
        axes.set_xticks(place, [printable(r[0]) for r in rows])
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.grid(axis="x", visible=False)
        axes.legend()
        return png(figure)
