"""Family `shrink`: the teacher with every internal width scaled by one ratio.

Inputs and outputs keep their channels, tied channels (residual sums, depthwise convolutions) stay
tied, and free widths are rounded to the target's channel tile.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from kdcompile.models.channels import Channels, Layer, trace

GRID = 64


def architectures(
    teacher: nn.Module, shape: Sequence[int], tile: int, seed: int, ratios: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """The distinct students, widest first; `ratios` replaces the grid of 1/64 steps.

    Raises:
        KDError: the teacher cannot be traced.
    """
    return students(trace(teacher, shape), tile, seed, ratios)


def students(
    channels: Channels, tile: int, seed: int, ratios: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """As `architectures`, of a teacher that is traced already."""
    found: list[dict[str, Any]] = []
    for ratio in ratios or [n / GRID for n in range(GRID, 0, -1)]:
        modules = {n: _widths(channels, v, ratio, tile) for n, v in channels.layers.items()}
        if not found or modules != found[-1]["modules"]:
            found.append({"family": "shrink", "width": ratio, "seed": seed, "modules": modules})
    return found


def arguments(layer: Layer, inputs: int, outputs: int) -> dict[str, int]:
    """The constructor arguments that give a layer these widths."""
    if issubclass(layer.kind, nn.Linear):
        return {"in_features": inputs, "out_features": outputs}
    if issubclass(layer.kind, nn.BatchNorm1d | nn.BatchNorm2d):
        return {"num_features": outputs}
    depthwise = layer.groups > 1 and layer.inputs == layer.outputs
    groups = inputs if depthwise else layer.groups
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


def _widths(channels: Channels, layer: Layer, ratio: float, tile: int) -> dict[str, int]:
    """The constructor arguments of a layer at a ratio."""
    sides = (channels.width(layout, ratio, tile) for layout in (layer.inputs, layer.outputs))
    return arguments(layer, *sides)
