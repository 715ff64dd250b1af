"""Plot the Pareto front: latency against expected quality, with the front's 90 % intervals."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from kdcompile.bundle.figures import LIGHT, png, style
from kdcompile.core.files import replacing
from kdcompile.latency_model.predict import NINETY
from kdcompile.search.pareto import Point, front
from kdcompile.tasks.metric import Metric

LINE, LIMIT = LIGHT.terms[0], LIGHT.terms[4]
MARKERS = {"proxy": "x", "predicted": "o", "distilled": "s", "measured": "D"}


def plot_front(
    points: Sequence[Point],
    chosen: Point,
    limit_ms: float | None,
    teacher: Point,
    metric: Metric,
    path: Path,
) -> list[Path]:
    """Write the chart as `path` with the suffixes .png and .svg; equal points give equal bytes.

    Args:
        points: every candidate to show.
        chosen: the one that is marked.
        limit_ms: the budget as a line; None where it is not of time.
        teacher: shown where its latency and its quality meet.
        metric: of the qualities; its better side is up.
        path: without a suffix.

    Returns:
        The two files.
    """
    with style(LIGHT), matplotlib.rc_context({"svg.hashsalt": "kdcompile"}):  # for equal ids
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes, best = figure.subplots(), front(points, metric)
        _points(axes, points)
        _intervals(axes, best if chosen in best else [*best, chosen])
        x, y = [p.ms for p in best], [p.quality for p in best]
        axes.step(x, y, where="post", c=LINE, lw=1.2, label="front")  # reached at each latency
        for label, point, marker, c, size in (
            ("teacher", teacher, "^", LIGHT.teacher, 60),
            ("choice", chosen, "*", LIGHT.student, 170),
        ):
            axes.scatter(point.ms, point.quality, size, c=c, marker=marker, label=label, zorder=4)
        if limit_ms is not None:
            axes.axvline(limit_ms, c=LIMIT, ls="--", lw=1, label=f"budget {limit_ms:.3g} ms")
        _axes(axes, chosen, metric)
        axes.legend(fontsize=8)
        drawn = {".png": png(figure), ".svg": _svg(figure)}
        return [_write(path.with_name(path.name + end), data) for end, data in drawn.items()]


def _points(axes: Axes, points: Sequence[Point]) -> None:
    for evidence, marker in MARKERS.items():
        seen = [p for p in points if p.evidence == evidence]
        if not seen:
            continue
        x, y = [p.ms for p in seen], [p.quality for p in seen]
        axes.scatter(
            x, y, 16, c=LINE, marker=marker, alpha=0.6, lw=1, label=f"quality: {evidence}", zorder=3
        )


def _intervals(axes: Axes, points: Sequence[Point]) -> None:
    """Of a few points: those of all would hide each other."""
    x, y = [p.ms for p in points], [p.quality for p in points]
    lower, upper = zip(*(p.interval for p in points), strict=True)
    across = [
        [ms - low for ms, low in zip(x, lower, strict=True)],
        [high - ms for ms, high in zip(x, upper, strict=True)],
    ]
    up = [NINETY * p.quality_sd for p in points]
    axes.errorbar(x, y, up, across, fmt="none", ecolor=LIGHT.teacher, elinewidth=0.8)


def _axes(axes: Axes, chosen: Point, metric: Metric) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    better = "higher" if metric.higher else "lower"
    axes.set_xlabel(f"latency in ms at {chosen.latency.precision}, 90 % interval")
    axes.set_ylabel(f"expected {metric.name} ({better} is better), 90 % interval")
    if not metric.higher:
        axes.invert_yaxis()


def _svg(figure: Figure) -> bytes:
    canvas: Any = FigureCanvasSVG(figure)
    buffer = io.BytesIO()
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> Path:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path
