"""Which of a teacher's channel groups lie along the channel axis of each tensor of its ONNX file.

`models.channels` knows the groups of the PyTorch network. A weight keeps its module's name in the
file, so the outputs of weighted operators are known; other operators pass channels on by rules. The
two must agree: what no rule covers may only read tensors whose width never changes.
"""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnx import GraphProto, NodeProto, helper

from kdcompile.core.errors import KDError
from kdcompile.export.scopes import KEY
from kdcompile.latency_model.fusion import POINTWISE, POOLS, RESIZES, WEIGHTED
from kdcompile.models.channels import Channels, Layer, Layout
from kdcompile.models.dropped import NORMS

PASSING = POINTWISE | POOLS | RESIZES | {
    "BatchNormalization", "Dropout", "Identity", "Pad", "PRelu", "ReduceMean",
}  # fmt: skip
VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True)
class Span:
    """Channels of a tensor: of each free group, by its root, how often; and those that stay."""

    free: tuple[tuple[int, int], ...]
    fixed: int
    full: int  # in the teacher

    def width(self, widths: Mapping[int, int]) -> int:
        """How many there are where groups have these widths."""
        return self.fixed + sum(widths[root] * each for root, each in self.free)


def span(channels: Channels, layout: Layout) -> Span:
    """A layout with the groups that never change counted."""
    runs = [(channels.root(group), size, each) for group, size, each in layout]
    free = tuple((root, each) for root, _, each in runs if root not in channels.frozen)
    fixed = sum(size * each for root, size, each in runs if root in channels.frozen)
    return Span(free, fixed, sum(size * each for _, size, each in runs))


def scopes(node: NodeProto) -> list[str]:
    """The modules around a node, the innermost last, as torch's exporter records them."""
    for entry in node.metadata_props:
        if entry.key == KEY:
            return [str(name) for name in ast.literal_eval(entry.value)][:-1]
    return []


def layer_of(channels: Channels, node: NodeProto) -> str | None:
    """The module whose weight an operator holds."""
    around = [name for name in scopes(node) if name in channels.layers]
    if around and not issubclass(channels.layers[around[-1]].kind, NORMS):
        return around[-1]
    # a folded batch norm lends the convolution its scope
    named = (name.removesuffix(".weight") for name in node.input[:2])
    return next((name for name in named if name in channels.layers), None)


class TensorChannels:
    """Spans of every tensor with computed values.

    Raises:
        KDError: `template-unknown`, an operator changes channels in a way that no rule covers.
    """

    def __init__(
        self, graph: GraphProto, channels: Channels, sizes: Mapping[str, Sequence[int]]
    ) -> None:
        self._channels, self._sizes = channels, sizes
        self.spans: dict[str, Span] = {}
        self.layers: dict[str, Layer] = {}  # by node
        held = {tensor.name for tensor in graph.initializer}
        for value in graph.input:
            if value.name not in held:
                self.spans[value.name] = self._constant(value.name)
        for node in graph.node:
            self._visit(node)

    def _visit(self, node: NodeProto) -> None:
        inputs = [name for name in node.input if name in self.spans]
        if not inputs:
            return
        found = self._outputs(node, inputs)
        for name in filter(None, node.output):
            self.spans[name] = found if found is not None else self._constant(name)

    def _outputs(self, node: NodeProto, inputs: Sequence[str]) -> Span | None:
        """None where nothing about the outputs can change."""
        layer = layer_of(self._channels, node) if node.op_type in WEIGHTED else None
        if layer is not None:
            self.layers[node.name or node.output[0]] = self._channels.layers[layer]
            return span(self._channels, self._channels.layers[layer].outputs)
        spans = [self.spans[name] for name in inputs]
        if not any(one.free for one in spans):
            return None
        made = self._passed(node, inputs, spans)
        if made is None:
            raise _unknown(node)
        return made

    def _passed(self, node: NodeProto, inputs: Sequence[str], spans: Sequence[Span]) -> Span | None:
        size = self._sizes[node.output[0]]
        if (
            node.op_type == "Concat"
            and _axis(node, len(size)) == 1
            and len(inputs) == len(node.input)
        ):
            free = tuple(run for one in spans for run in one.free)
            return Span(free, sum(s.fixed for s in spans), sum(s.full for s in spans))
        before = self._sizes[inputs[0]]
        if node.op_type in VIEWS and list(size[:2]) != list(before[:2]):
            if len(size) != 2 or size[1] != math.prod(before[1:]):
                return None
            area = math.prod(before[2:])
            free = tuple((root, each * area) for root, each in spans[0].free)
            return Span(free, spans[0].fixed * area, spans[0].full * area)
        if node.op_type not in PASSING | VIEWS or len(size) < 2:
            return None
        wide = {one for one in spans if one.full == size[1]}
        narrow = [one for one in spans if one.full != size[1]]
        agreed = len(wide) == 1 and not any(one.free for one in narrow)
        return next(iter(wide)) if agreed else None

    def _constant(self, name: str) -> Span:
        size = self._sizes.get(name, ())
        full = int(size[1]) if len(size) > 1 else 1
        return Span((), full, full)


def _axis(node: NodeProto, rank: int) -> int:
    axis: Any = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "axis"), 0)
    return int(axis) % max(rank, 1)


def _unknown(node: NodeProto) -> KDError:
    around = ", ".join(scopes(node)[1:])
    return KDError(
        "template-unknown",
        f"how {node.op_type} passes channels on is not known, so a student's kernels cannot be "
        "derived from the teacher's",
        where=around or node.name,
        fix='set search.space = "staged", or write that module in standard layers',
    )
