"""Check that a student of a width budget is really smaller, and name what could not be resized.

Criterion: where every width inside the network is scaled by `width`, a layer between two others
keeps `width` squared of its weights; one at an end of the network keeps `width`, and so does a
norm, an embedding or a depthwise convolution, which has one axis. The rest of the teacher's
weights, and by layers of its multiply-adds, is what must go. A student for which less than
`REACHED` of that goes is refused: a part of the network was not resized. What may not change is
left out: the channels of the network's own input and output, where a layer has others too, and
widths that are rounded up to a whole channel tile or to what a grouped convolution is divisible by.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Node

from kdcompile.config.spec import Budget
from kdcompile.core.errors import KDError
from kdcompile.models.channel_groups import ENDS, Channels, Layer, Layout, length
from kdcompile.models.resize import NORMS, TRANSPOSED, sides

SHOWN = 3  # modules in a message
FIX = (
    'give a smaller network of your own: student.family = "student.py:build"; or set '
    'student.family = "search" and search.space = "staged", with a budget of speedup, latency_ms '
    "or macs"
)
# of the reduction: networks whose mixing over positions or split attention stays reach 0.966 and
# more (docs/backbones.md at three widths and tiles), one with its trunk frozen 0.78 at half
REACHED = 0.9


@dataclass(frozen=True)
class Part:
    """A module with weights of its own: how many the teacher has, the student and the criterion.

    `positions` is how often each weight is used in one inference, 0 where that is not known; `why`
    gives what holds one of the module's axes, and is empty where none is held.
    """

    name: str
    weights: int
    kept: float
    allowed: float
    positions: int
    why: str


def refuse_unshrunk(
    teacher: nn.Module,
    channels: Channels,
    architecture: Mapping[str, Any],
    width: float,
    tile: int,
    budget: Budget,
) -> list[str]:
    """Refuse a student that keeps more of its teacher than its width leaves.

    Args:
        teacher: as it was traced.
        channels: of the teacher.
        architecture: of family `shrink`.
        width: the share of the teacher's channels that is requested of it.
        tile: of the target, in channels.
        budget: for the message.

    Returns:
        A sentence on the modules of a good student that keep the teacher's width, if any do.

    Raises:
        KDError: `student-not-smaller`, naming what could not be resized and why.
    """
    criterion = _Criterion(channels, width, tile)
    parts = _loose(teacher, criterion, architecture.get("parameters", {}))
    parts += _parts(teacher, criterion, architecture["modules"])
    for what, weighs in (("weights", lambda _: 1), ("multiply-adds", lambda p: p.positions)):
        whole = sum(part.weights * weighs(part) for part in parts)
        kept = sum(part.kept * weighs(part) for part in parts)
        allowed = sum(part.allowed * weighs(part) for part in parts)
        most = whole - REACHED * (whole - allowed)
        if kept > most + 1e-9 * whole:
            requested = ", ".join(
                f"{k} = {v:g}" for k, v in budget.model_dump(exclude_none=True).items()
            )
            at = "" if budget.width is not None else f" at width {width:.3g}"
            raise KDError(
                "student-not-smaller",
                f"{requested} was requested, and the student keeps {kept / whole:.0%} of the "
                f"teacher's {what}{at}, where {most / whole:.0%} is the most; these modules could "
                f"not be resized: {_named(parts)}",
                where="[student] budget",
                fix=FIX,
            )
    held = [part for part in parts if part.kept == part.weights]
    share = sum(part.weights for part in held if part.why) / sum(part.weights for part in parts)
    named = f"modules with {share:.0%} of the teacher's weights keep its width: {_named(held)}"
    return [named] if share else []


def _named(parts: Sequence[Part]) -> str:
    """The modules that something holds, those that keep most more than they may first."""
    held = sorted((p for p in parts if p.why), key=lambda part: part.allowed - part.kept)
    names = "; ".join(f"{part.name} ({part.why})" for part in held[:SHOWN])
    return names + (f"; and {len(held) - SHOWN} more" if len(held) > SHOWN else "")


@dataclass(frozen=True)
class _Criterion:
    """What a student may keep at a share of the teacher's channels, in tiles of so many."""

    channels: Channels
    ratio: float
    tile: int

    def of_layer(self, layer: Layer) -> float:
        """The share of its weights that a layer has where each axis inside the network is free."""
        axes = (layer.inputs, layer.outputs)
        ends = [_is_end(self.channels, layout) for layout in axes]
        if all(ends):
            return self.ratio
        inputs, outputs = (
            1.0 if end else self.of_layout(layout) for layout, end in zip(axes, ends, strict=True)
        )
        return _share(layer, inputs, outputs)

    def of_layout(self, layout: Layout) -> float:
        """The share of channels where every group is free and is rounded up to a tile."""
        kept = 0
        for group, size, each in layout:
            unit = self.channels.unit(group, self.tile)
            kept += min(size, math.ceil(size * self.ratio / unit) * unit) * each
        return kept / length(layout)


def _parts(
    teacher: nn.Module, criterion: _Criterion, widths: Mapping[str, Mapping[str, int]]
) -> list[Part]:
    """Modules with weights of their own."""
    found: list[Part] = []
    seen: set[int] = set()
    channels = criterion.channels
    for name, module in teacher.named_modules():
        own = {n: p for n, p in module.named_parameters(name, recurse=False) if id(p) not in seen}
        seen |= {id(p) for p in own.values()}
        count = sum(p.numel() for n, p in own.items() if n not in channels.parameters)
        if not count:
            continue
        layer = channels.layers.get(name)
        if layer is None and name.endswith(".out_proj"):  # inside of torch's own attention
            name = name.removesuffix(".out_proj")
            layer = channels.layers.get(name)
        if layer is None:
            why = channels.fixed.get(name, f"there is no rule for {type(module).__name__}")
            allowed = count * criterion.ratio
            found.append(Part(name or "the network", count, count, allowed, 0, why))
            continue
        allowed = count * criterion.of_layer(layer)
        kept = count * _kept(layer, widths[name])
        held = "" if kept <= allowed else _why(channels, layer)
        looked_up = issubclass(layer.kind, (*NORMS, nn.Embedding))
        positions = 0 if looked_up else _positions(channels.nodes[name], layer)
        found.append(Part(name, count, kept, allowed, positions, held))
    return found


def _loose(
    teacher: nn.Module, criterion: _Criterion, widths: Mapping[str, tuple[int, int]]
) -> list[Part]:
    """Parameters that no layer owns, by their one axis of channels."""
    found, channels = [], criterion.channels
    for name, (dim, layout) in channels.parameters.items():
        parameter = teacher.get_parameter(name)
        count, width = parameter.numel(), widths[name][1]
        kept = count * (width / parameter.shape[dim])
        allowed = count * criterion.of_layout(layout)
        roots = [channels.root(group) for group, _, _ in layout]
        why = "" if kept <= allowed else next((channels.why.get(r, "") for r in roots), "")
        found.append(Part(name, count, kept, allowed, 0, why))
    return found


def _kept(layer: Layer, widths: Mapping[str, int]) -> float:
    """The share of its weights that a layer has at these constructor arguments."""
    inputs, outputs = sides(widths)
    return _share(layer, inputs / length(layer.inputs), outputs / length(layer.outputs))


def _share(layer: Layer, inputs: float, outputs: float) -> float:
    """The share of its weights that a layer has at these shares of its channels."""
    if layer.is_depthwise or issubclass(layer.kind, (*NORMS, nn.Embedding)):
        return outputs
    if issubclass(layer.kind, nn.RNNBase):  # each layer reads its own state too
        read, state = length(layer.inputs), length(layer.outputs)
        return outputs * (inputs * read + outputs * state) / (read + state)
    return inputs * outputs


def _is_end(channels: Channels, layout: Layout) -> bool:
    return any(channels.why.get(channels.root(group)) == ENDS for group, _, _ in layout)


def _why(channels: Channels, layer: Layer) -> str:
    groups = [channels.root(group) for v in (layer.outputs, layer.inputs) for group, _, _ in v]
    reasons = [channels.why[root] for root in groups if root in channels.frozen]
    if _is_end(channels, layer.inputs) and _is_end(channels, layer.outputs):
        return ENDS
    return next((reason for reason in reasons if reason != ENDS), "")


def _positions(nodes: Sequence[Node], layer: Layer) -> int:
    """Images and pixels (tokens of a linear layer) that a layer's weights are applied to."""
    is_linear = issubclass(layer.kind, nn.Linear | nn.MultiheadAttention | nn.RNNBase)
    reads = issubclass(layer.kind, (*TRANSPOSED, nn.RNNBase))
    total = 0
    for node in nodes:
        size = (node.args[0] if reads else node).meta["val"].shape  # type: ignore[union-attr]
        total += math.prod(size[:-1]) if is_linear else size[0] * math.prod(size[2:])
    return total
