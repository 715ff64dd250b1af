"""Search results: the record `search.json` and the text of `kdcompile search`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from kdcompile.config.spec import Budget
from kdcompile.core.report import columns
from kdcompile.latency_model.correction import SHARED, Correction
from kdcompile.latency_model.predict import NINETY
from kdcompile.search.pareto import Point, front, likely_front, limit_ms
from kdcompile.tasks.metric import METRICS, Metric

ROWS = 24  # in addition to the front so many likely points are printed
HEADER = (
    "", "latency ms", "90 %", "expected, 90 %", "GMACs", "Mparams", "evidence", "architecture"
)  # fmt: skip
MARKS = "> the choice   * on the front   ~ perhaps on it, as uncertain as the two are"


@dataclass(frozen=True)
class SearchResult:
    """What a search gives.

    Args:
        target: the device with its mode, as latencies name it.
        precision: at which the latencies are.
        metric: of the qualities.
        budget: what was requested.
        teacher: as a point, at the precision that it is compared at.
        chosen: one of the points.
        points: every candidate whose quality was evaluated.
        explanation: sentences.
        stages: the chosen student's time by stage, as `explain.facts` gives it.
        correction: of the latencies, from measurements.
    """

    target: str
    precision: str
    metric: Metric
    budget: Budget
    teacher: Point
    chosen: Point
    points: Sequence[Point]
    explanation: Sequence[str]
    stages: Sequence[Mapping[str, Any]] = ()
    correction: Correction | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; points fastest first, each with `short`, `on_front`, `likely`.

        The parts of a latency are kept for teacher and choice alone.
        """
        shared = SHARED if self.correction is None else self.correction.shared
        best = front(self.points, self.metric)
        likely = likely_front(self.points, self.metric, shared)
        rows = []
        for point in sorted(self.points, key=lambda p: p.ms):
            row = point.to_json()
            if point != self.chosen:
                row["latency"]["parts"] = []
            row |= {"on_front": point in best, "likely": point in likely}
            rows.append(row | {"short": arch_string(point.architecture)})
        return {
            "target": self.target,
            "precision": self.precision,
            "metric": self.metric.name,
            "budget": self.budget.model_dump(exclude_none=True),
            "limit_ms": limit_ms(self.budget, self.teacher),
            "teacher": self.teacher.to_json(),
            "chosen": [row["architecture"] for row in rows].index(dict(self.chosen.architecture)),
            "points": rows,
            "explanation": list(self.explanation),
            "stages": [dict(stage) for stage in self.stages],
            "correction": None if self.correction is None else self.correction.to_json(),
        }


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record of `SearchResult.to_json` as text: the front as a table, then the explanation."""
    name, points = record["metric"], record["points"]
    metric = METRICS.get(name) or Metric(name, np.mean)  # of a plug-in: its values show as numbers
    requested = ", ".join(f"{name} = {value:g}" for name, value in record["budget"].items())
    chosen, shown = record["chosen"], _shown_rows(record)
    rows: list[Sequence[str]] = [HEADER]
    for index, point in enumerate(points):
        if index in shown:
            mark = ">" if index == chosen else "*" if point["on_front"] else "~"
            rows.append((mark, *_cells(point, metric, point["short"])))
    rows.append(("", *_cells(record["teacher"], metric, "the teacher")))
    left = len(points) - len(shown)
    return [
        f"search  {record['target']} at {record['precision']}, budget {requested}, "
        f"{len(points)} students evaluated by {metric.name}",
        "",
        *columns(rows),
        "",
        MARKS + (f"   ({left} more in search.json)" if left else ""),
        "",
        *(f"- {sentence}" for sentence in record["explanation"]),
    ]


def _shown_rows(record: Mapping[str, Any]) -> set[int]:
    points = record["points"]
    kept = {i for i, point in enumerate(points) if point["on_front"]} | {record["chosen"]}
    likely = [i for i, point in enumerate(points) if point["likely"] and i not in kept]
    return kept | set(likely[:ROWS])


def _cells(point: Mapping[str, Any], metric: Metric, name: str) -> tuple[str, ...]:
    latency, measured = point["latency"], point["measured_ms"]
    half = NINETY * point["quality_sd"]
    interval = f"{latency['low_ms']:.3g} to {latency['high_ms']:.3g}"
    return (
        f"{latency['ms']:.3g}" if measured is None else f"{measured:.3g}",
        interval if measured is None else "measured",
        metric.text(point["quality"]) + (f" +- {metric.difference(half)}" if half else ""),
        f"{point['macs'] / 1e9:.4g}",
        f"{point['params'] / 1e6:.4g}",
        point["evidence"],
        name,
    )


PARTS = (1, 2, 3, 4, 8, 16, 32, 64)  # a ratio is written as so many of one of these where it is one
RUNS = 10  # of equal widths that are named


def arch_string(architecture: Mapping[str, Any]) -> str:
    """Such as `x1/2 | 16x2 s2 conv | 32x3 p2 repvgg d2`.

    That is the input's scale, then width x depth of each stage with its stride (`s2`) or pooling
    (`p2`), its blocks and its dilation (`d2`), where they are not 1. A shrunk teacher is its ratio
    and its widths (`width 1/4: 16x2 32x3`), with the number of dropped modules; a user's own
    student is its factory's name.
    """
    family = str(architecture["family"])
    if family == "staged":
        scale = architecture.get("input_scale", 1.0)
        stages = [_stage(stage) for stage in architecture["stages"]]
        return " | ".join([f"x{_ratio(scale)}"] * (scale != 1) + stages)
    if family != "shrink":
        return family
    dropped = len(architecture.get("dropped", ()))
    text = _shrunk_text(architecture)
    return f"{text}, {dropped} dropped" if dropped else text


def _stage(stage: Mapping[str, Any]) -> str:
    words = [f"{stage['width']}x{stage['depth']}"]
    if stage.get("stride", 1) > 1:
        pooled = stage.get("down", "pool") == "pool"
        words.append(f"{'p' if pooled else 's'}{stage['stride']}")
    words.append(str(stage["block"]))
    if stage.get("dilation", 1) > 1:
        words.append(f"d{stage['dilation']}")
    return " ".join(words)


def _shrunk_text(architecture: Mapping[str, Any]) -> str:
    """The ratio, then the output widths of its layers, those of neighbours that agree as one."""
    dropped = architecture.get("dropped", ())
    widths = [
        modules[key]
        for name, modules in architecture.get("modules", {}).items()
        for key in ("out_channels", "out_features")
        if key in modules and name not in dropped
    ]
    runs = [(width, len(list(members))) for width, members in groupby(widths)]
    shown = [f"{width}x{count}" if count > 1 else f"{width}" for width, count in runs[:RUNS]]
    shown += ["..."] * (len(runs) > RUNS)
    ratio = f"width {_ratio(architecture['width'])}" if "width" in architecture else "widths"
    return f"{ratio}: {' '.join(shown)}" if shown else ratio


def _ratio(value: float) -> str:
    for whole in PARTS:
        if abs(value * whole - round(value * whole)) < 1e-3 * whole:
            return f"{round(value * whole)}/{whole}" if whole > 1 else f"{round(value)}"
    return f"{value:.3g}"
