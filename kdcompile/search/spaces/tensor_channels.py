"""Channel groups of each tensor of a teacher's ONNX file, narrower kernels, modules removed.

`models.channels` knows the groups of the PyTorch network. A weight keeps its module's name in the
file, so the outputs of weighted operators are known; other operators pass channels on by rules. The
two must agree: what no rule covers may only read tensors whose width never changes.
"""

import ast
import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx import GraphProto, NodeProto, helper
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.latency_model.fusion import POINTWISE, POOLS, RESIZES, WEIGHTED
from kdcompile.latency_model.workload import Kernel, Kind
from kdcompile.models.channel_groups import Channels, Layer, Layout, length
from kdcompile.models.dropped import is_gone
from kdcompile.models.resize import NORMS
from kdcompile.onnx_graph.opset import SCOPE

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
    return Span(free, fixed, length(layout))


def scopes(node: NodeProto) -> list[str]:
    """The modules around a node, the innermost last, as torch's exporter records them."""
    for entry in node.metadata_props:
        if entry.key == SCOPE:
            return [str(name) for name in ast.literal_eval(entry.value)][:-1]
    return []


def layer_of(channels: Channels, node: NodeProto) -> str | None:
    """The module whose weight an operator holds."""
    inside = [name for name in scopes(node) if name in channels.layers]
    around = [n for n in inside if channels.layers[n].kind is not nn.MultiheadAttention]
    if around and not issubclass(channels.layers[around[-1]].kind, NORMS):
        return around[-1]
    # a folded batch norm lends the convolution its scope
    named = (name.removesuffix(".weight") for name in node.input[:2])
    return next((name for name in named if name in channels.layers), None)


class TensorChannels:
    """Spans of every tensor with computed values.

    Args:
        graph: of the export.
        channels: of the teacher; where `freeze` is set, groups that no rule covers are frozen.
        sizes: of every tensor.
        freeze: instead of refusing.

    Raises:
        KDError: `template-unknown`, an operator changes channels in a way that no rule covers.
    """

    def __init__(
        self,
        graph: GraphProto,
        channels: Channels,
        sizes: Mapping[str, Sequence[int]],
        freeze: bool = False,
    ) -> None:
        self._channels, self._sizes, self._freeze = channels, sizes, freeze
        frozen = -1
        while frozen != len(channels.frozen):
            frozen = len(channels.frozen)
            self._walk(graph)

    def _walk(self, graph: GraphProto) -> None:
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
        if made is not None:
            return made
        if not self._freeze:
            what = f"how {node.op_type} passes channels on is not known"
            raise unknown(what, ", ".join(scopes(node)[1:]) or node.name)
        roots = {root for one in spans for root, _ in one.free}
        why = f"how {node.op_type} passes channels on is not known to the latency model"
        self._channels.freeze(tuple((root, 0, 0) for root in roots), why)
        return None

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


def unknown(what: str, where: str) -> KDError:
    """The refusal of a teacher whose file does not tell the channels of its students."""
    return KDError(
        "template-unknown",
        f"{what}, so a student's kernels cannot be derived from the teacher's",
        where=where,
        fix='set search.space = "staged", or write that module in standard layers',
    )


def remove_modules(graph: GraphProto, part: Sequence[str], computed: Container[str]) -> None:
    """Replace the nodes of some modules by an identity.

    Args:
        graph: changed in place.
        part: the modules that go together.
        computed: the tensors that depend on the input.

    Raises:
        KDError: `template-dropped`, not one tensor goes in and one comes out.
    """
    inside = _inside(graph, part, computed)
    outside = [node for node in graph.node if not any(node is other for other in inside)]
    made = {name for node in inside for name in node.output}
    read = {name for node in inside for name in node.input if name in computed} - made
    left = {name for node in outside for name in node.input} | {v.name for v in graph.output}
    if len(read) != 1 or len(made & left) != 1:
        raise KDError(
            "template-dropped",
            f"module cannot be replaced by identity: {len(read)} inputs, "
            f"{len(made & left)} outputs",
            where=part[0],
            fix='search with search.space = "staged"; for a given student, use weights that '
            "kdcompile distill wrote for this teacher",
        )
    bypass = helper.make_node("Identity", [*read], [*(made & left)], name=f"without_{part[0]}")
    nodes = list(graph.node)
    first = next(index for index, node in enumerate(nodes) if node is inside[0])
    kept = [*outside[:first], bypass, *outside[first:]]
    del graph.node[:]
    graph.node.extend(kept)


def _inside(graph: GraphProto, part: Sequence[str], computed: Container[str]) -> list[NodeProto]:
    """The nodes of some modules, and those that the simplifier put between them."""
    nodes = list(graph.node)
    readers: dict[str, set[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, set()).add(index)
    own = {n for n, node in enumerate(nodes) if any(is_gone(s, part) for s in scopes(node))}
    found, made = set(own), {name for n in own for name in nodes[n].output}
    for index, node in enumerate(nodes):  # a node that is of no module has lost where it is from
        read = {name for name in node.input if name in computed}
        if not scopes(node) and read and read <= made:
            found.add(index)
            made |= set(node.output)
    for index in sorted(found - own, reverse=True):
        if not set().union(*(readers.get(name, {-1}) for name in nodes[index].output)) <= found:
            found.remove(index)
    return [nodes[index] for index in sorted(found)]


@dataclass(frozen=True)
class Part:
    """A kernel of the teacher, with the channels of everything in it."""

    kernel: Kernel
    reads: tuple[tuple[str, int, Span], ...]  # tensor, bytes a channel
    writes: tuple[tuple[str, int, Span], ...]
    ends: tuple[Span, Span]  # the core's input and output
    layer: Layer | None
    product: int  # out * in / groups of the layer
    held: int  # bytes of weight for each unit of that product
    bias: int  # bytes of one output's bias
    constants: tuple[tuple[int, Span], ...]  # bytes a channel, where there is no layer

    def at(self, widths: Mapping[int, int]) -> Kernel:
        """The kernel where groups have these widths."""
        kernel = self.kernel
        inner, outer = (end.width(widths) for end in self.ends)
        first = self.writes[0][2]
        shape = kernel.shape
        if first.free:
            shape = (shape[0], first.width(widths), *shape[2:])
        groups, macs, kind = kernel.groups, kernel.macs, kernel.kind
        if self.layer is not None:
            if self.layer.groups > 1:
                groups = inner if self.layer.is_depthwise else groups
                kind = _kind(kernel, groups, inner)
            product = outer * inner // groups
            macs = macs // self.product * product
            weight = self.held * product + self.bias * outer
        else:
            weight = sum(each * of.width(widths) for each, of in self.constants)
        return replace(
            kernel,
            kind=kind,
            macs=macs,
            reads={name: each * of.width(widths) for name, each, of in self.reads},
            writes={name: each * of.width(widths) for name, each, of in self.writes},
            weight_bytes=weight,
            shape=shape,
            in_channels=inner,
            out_channels=outer,
            groups=groups,
        )


def _kind(kernel: Kernel, groups: int, inner: int) -> Kind:
    if kernel.kind not in ("depthwise", "grouped"):
        return kernel.kind
    if groups > 1:
        return "depthwise" if groups == inner else "grouped"
    return "dilated" if any(d > 1 for d in kernel.dilation) else "conv"
