"""An architecture in one short line."""

from collections.abc import Mapping
from itertools import groupby
from typing import Any

PARTS = (1, 2, 3, 4, 8, 16, 32, 64)  # a ratio is written as so many of one of these where it is one
RUNS = 10  # of equal widths that are named


def short(architecture: Mapping[str, Any]) -> str:
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
    text = _shrunk(architecture)
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


def _shrunk(architecture: Mapping[str, Any]) -> str:
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
