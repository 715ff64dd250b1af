"""The report's charts of a training, as SVG."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from kdcompile.bundle.figures import LIGHT, Chart, Theme, chart, printable, style, svg

POINTS_OF_A_CURVE = 300
LOG_RATIO = 30  # from here on a logarithmic axis, which has a label in every decade
Rows = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


def loss_curves(metrics: Rows, theme: Theme = LIGHT) -> list[Chart]:
    """The loss and each of its terms over training steps, a chart each, as their scales differ.

    A weight that changes is a dashed line on an axis of its own; dotted lines part the stages.

    Args:
        metrics: the lines of `metrics.jsonl`.
        theme: colours.
    """
    losses = [row for row in metrics if row.get("loss") is not None]
    series: dict[str, Points] = {"loss": [(row["step"], row["loss"]) for row in losses]}
    weights = {name: _moving(points) for name, points in _by_name(losses, "weights").items()}
    series |= _by_name(losses, "terms")
    drawn, colours = [], [theme.ink, *theme.terms]
    with style(theme):
        for index, (name, points) in enumerate(series.items()):
            figure = Figure(figsize=(3.4, 2.4), layout="constrained")
            axes = figure.subplots()
            _panel(axes, name, points, colours[index % len(colours)])
            _bounds(axes, metrics, theme)
            if weights.get(name):
                _weight(axes, weights[name], theme)
            what = f"The term {name} of the loss" if index else "The loss"
            drawn.append(svg(figure, f"{what} over training steps"))
    return drawn


def _by_name(rows: Rows, key: str) -> dict[str, Points]:
    found: dict[str, Points] = {}
    for row in rows:
        for name, value in (row.get(key) or {}).items():
            found.setdefault(name, []).append((row["step"], value))
    return found


def _moving(points: Points) -> Points:
    """The points of a weight that changes, none of one that does not."""
    return points if len({value for _, value in points}) > 1 else []


def _panel(axes: Axes, name: str, points: Points, colour: str) -> None:
    axes.set_title(printable(name))
    axes.set_xlabel("step", fontsize=9)
    axes.set_ylabel("loss", fontsize=9)
    axes.tick_params(labelsize=9)
    if not points:
        return
    line = _thinned(np.asarray(points, dtype=np.float64))
    axes.plot(line[:, 0], line[:, 1], lw=1.2, c=colour)
    low, high = line[:, 1].min(), line[:, 1].max()
    if low > 0 and high > LOG_RATIO * low:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _weight(axes: Axes, points: Points, theme: Theme) -> None:
    own: Any = axes.twinx()
    line = np.asarray(points, dtype=np.float64)
    own.plot(line[:, 0], line[:, 1], lw=0.9, ls="--", c=theme.teacher)
    own.set_ylim(bottom=0)
    own.set_ylabel("weight", fontsize=9)
    own.tick_params(labelsize=9)
    own.grid(visible=False)


def _bounds(axes: Axes, metrics: Rows, theme: Theme) -> None:
    """A dotted line where a stage begins, with its name."""
    named = [(row["step"], row["stage"]) for row in metrics if row.get("stage") is not None]
    for (last, before), (_, stage) in pairwise(named):
        if stage != before:
            axes.axvline(last, c=theme.ink, lw=0.8, ls=":")
            axes.annotate(
                printable(stage), (last, 1), xycoords=("data", "axes fraction"),
                xytext=(2, -8), textcoords="offset points", fontsize=8,
            )  # fmt: skip


def _thinned(points: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, Any]:
    """Means over neighbouring steps, so that a long training is a readable line."""
    parts = np.array_split(points, min(len(points), POINTS_OF_A_CURVE))
    return np.stack([part.mean(axis=0) for part in parts])


def validation_curve(
    metrics: Rows, metric: tuple[str, str], teacher: float | None, theme: Theme = LIGHT
) -> Chart:
    """A validation metric over training steps, the value before the first one included.

    Args:
        metrics: the lines of `metrics.jsonl`; those with the metric count.
        metric: its key there, such as `val_mae`, and its name in words.
        teacher: the teacher's on the same images, drawn as a line.
        theme: colours.
    """
    key, words = metric
    values = [(row["step"], row[key]) for row in metrics if row.get(key) is not None]
    points = [point for point in values if np.isfinite(point[1])]
    with style(theme):
        figure, axes = chart("step", words)
        steps, found = [n for n, _ in points], [value for _, value in points]
        axes.plot(steps, found, "o-", ms=3, c=theme.student, label="student")
        if teacher is not None:
            axes.axhline(teacher, c=theme.teacher, ls="--", label="teacher")
        axes.set_ylim(0, 1.08 * max([*found, teacher or 0.0, 1e-9]))
        _bounds(axes, metrics, theme)
        axes.legend()
        return svg(figure, f"Validation {words} of the student over training steps")
