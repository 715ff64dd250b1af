"""Kernels of any narrower or shallower student, derived from one export of the teacher.

The fused kernels of a student differ from the teacher's only in their numbers: each activation has
as many bytes as its channels ask for, a layer's arithmetic and weight go with inputs times outputs.
What is dropped is cut out of the teacher's graph, which is then fused anew, once for each set.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from onnx import ModelProto, NodeProto
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency_model.fusion import WEIGHTED
from kdcompile.latency_model.graph import BYTES
from kdcompile.latency_model.joins import COPIED
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.workload import Kernel, Precision
from kdcompile.models.channel_groups import Channels, Layer
from kdcompile.models.channels import trace
from kdcompile.models.dropped import members, tied
from kdcompile.models.resize import sides
from kdcompile.onnx_graph.shapes import inferred, tensor_sizes
from kdcompile.search.spaces.tensor_channels import (
    Part,
    Span,
    TensorChannels,
    remove_modules,
    span,
    unknown,
)

SMALL = 64  # elements; larger constants are weights, of which only the size matters
SETS = 1024  # of dropped parts, whose fused graphs are kept


class Template:
    """Kernels by architecture; `Template.of` makes one."""

    def __init__(
        self,
        model: ModelProto,
        network: nn.Module,
        shape: Sequence[int],
        channels: Channels | None = None,
        freeze: bool = False,
    ) -> None:
        """From the teacher's ONNX file.

        Args:
            model: of `onnx_from_module`; its weights are not kept.
            network: the teacher.
            shape: input [N, C, H, W].
            channels: of `trace` at this shape, where it has been traced.
            freeze: groups at operators that no rule covers, in `channels`, instead of refusing.

        Raises:
            KDError: `template-unknown`, `trace-failed`, `shape-unknown`, `kernels-unknown`.
        """
        self.channels, self._network = channels or trace(network, shape), network
        self._shape = list(shape)
        self._model = ModelProto()
        self._model.CopyFrom(model)
        self._graph = inferred(self._model, shape)
        for tensor in self._model.graph.initializer:
            if math.prod(tensor.dims) > SMALL:
                tensor.ClearField("raw_data")
                tensor.ClearField("float_data")
        self._sizes: dict[str, Sequence[int]] = {**tensor_sizes(self._graph)}
        self._known = TensorChannels(self._graph, self.channels, self._sizes, freeze)
        self._nodes = {n.name or n.output[0]: n for n in self._graph.node}
        self._free = {
            root: self.channels.size[root]
            for one in self._known.spans.values()
            for root, _ in one.free
        }
        self._settle(freeze)
        self._layers = {
            name: tuple(span(self.channels, v) for v in (layer.inputs, layer.outputs))
            for name, layer in self.channels.layers.items()
        }
        self.parts = lru_cache(SETS)(self._parts)

    def _settle(self, freeze: bool) -> None:
        """Groups that no tensor of the file has: a linear layer on tokens may lose its name."""
        for name, layer in self.channels.layers.items():
            roots = {self.channels.root(g) for g, _, _ in (*layer.inputs, *layer.outputs)}
            lost = roots - self.channels.frozen - self._free.keys()
            if lost and not freeze:
                raise unknown(f"no node of the exported file is known to be {name}", name)
            why = "its layer is not known to the latency model"
            self.channels.freeze(tuple((root, 0, 0) for root in lost), why)

    @classmethod
    def of(cls, teacher: nn.Module, shape: Sequence[int]) -> "Template":
        """Export the teacher at a fixed shape; channels that no rule covers keep their width.

        Args:
            teacher: in inference mode, on the CPU.
            shape: input [N, C, H, W].

        Raises:
            KDError: of the export, and those of `Template`.
        """
        with scratch() as folder:
            fixed = (shape, shape, shape)
            model = onnx_from_module(teacher, Path(folder) / "a.onnx", fixed)
            return cls(model, teacher, shape, freeze=True)

    def at(self, architecture: Mapping[str, Any], float32_as: Precision = "fp32") -> list[Kernel]:
        """The kernels of a student, in an order in which they can run.

        Args:
            architecture: of family `shrink`.
            float32_as: as in `kernels_of`.

        Raises:
            KDError: `template-family`; `template-widths`, the widths contradict each other;
                `template-dropped`, a dropped part is not one that takes and gives one tensor.
        """
        if architecture["family"] != "shrink":
            raise KDError(
                "template-family",
                f"a student of family {architecture['family']!r} is not the teacher's own code",
                where="student.family",
                fix='set student.family = "shrink"',
            )
        dropped = tuple(sorted(architecture.get("dropped", ())))
        widths = self.widths(architecture["modules"], dropped)
        return [part.at(widths) for part in self.parts(dropped, float32_as)]

    def widths(
        self, modules: Mapping[str, Mapping[str, int]], dropped: Sequence[str] = ()
    ) -> dict[int, int]:
        """The width of each free group, by its root; the teacher's where no module names it.

        Args:
            modules: the constructor arguments by module.
            dropped: parts whose input is read instead of their output.

        Raises:
            KDError: `template-widths`.
        """
        found = dict(self._free)
        named: dict[int, int] = {}
        for name in modules.keys() - self._layers.keys():
            raise _contradiction(name)
        given = [
            (name, end, value)
            for name, made in modules.items()
            for end, value in zip(self._layers[name], sides(made), strict=True)
        ]
        for name, end, value in given:
            if len(end.free) == 1 and not end.fixed:
                root, each = end.free[0]
                if named.setdefault(root, value // each) * each != value:
                    raise _contradiction(name)
        ties = tied(self.channels, dropped)
        for root in ties:
            if root in self.channels.frozen:
                named[root] = self.channels.size[root]
        agreed = {ties[root]: width for root, width in named.items() if root in ties}
        found |= named | {r: agreed[leader] for r, leader in ties.items() if leader in agreed}
        for name, end, value in given:
            if end.free and not {root for root, _ in end.free} & {*named, *ties}:
                found |= _side_by_side(end, value, found)
                named |= {root: found[root] for root, _ in end.free}
            if end.width(found) != value:
                raise _contradiction(name)
        return found

    def can_drop(self, name: str) -> bool:
        """Whether a part's nodes have one tensor in and one out, so that it can be cut out.

        Where the exporter or the simplifier joined nodes of neighbours, they have not.
        """
        try:
            self._without((name,))
        except KDError as error:
            if error.code != "template-dropped":
                raise
            return False
        return True

    def _without(self, dropped: Sequence[str]) -> ModelProto:
        """The teacher's file without some parts."""
        model = ModelProto()
        model.CopyFrom(self._model)
        modules = dict(self._network.named_modules())
        for name in dropped:
            part = members(self._network, name) if name in modules else [name]
            remove_modules(model.graph, part, self._known.spans)
        return model

    def _parts(self, dropped: tuple[str, ...], float32_as: Precision) -> list[Part]:
        model = self._without(dropped) if dropped else self._model
        return [self._part(kernel) for kernel in kernels_of(model, self._shape, float32_as)]

    def _part(self, kernel: Kernel) -> Part:
        nodes = [self._nodes[name] for name in kernel.nodes if name in self._nodes]
        weighted = [node for node in nodes if node.op_type in WEIGHTED]
        core = weighted[0] if weighted else (nodes[0] if nodes else None)
        layer = self._known.layers.get(core.name or core.output[0]) if core is not None else None
        ends = self._ends(kernel, core, layer)
        product = held = bias = 0
        if layer is not None and core is not None:
            product = kernel.out_channels * kernel.in_channels // kernel.groups
            weight = next(n for n in core.input[:2] if n not in self._known.spans)
            size = math.prod(self._sizes[weight]) * BYTES[kernel.weight_precision]
            held, bias = size // product, (kernel.weight_bytes - size) // kernel.out_channels
        return Part(
            kernel,
            self._reads(kernel),
            tuple(self._tensor(name, size) for name, size in kernel.writes.items()),
            ends,
            layer,
            product,
            held,
            bias,
            () if layer is not None else self._constants(kernel, nodes),
        )

    def _ends(
        self, kernel: Kernel, core: NodeProto | None, layer: Layer | None
    ) -> tuple[Span, Span]:
        """Spans of the input and output channels; those of the teacher where they are no axis."""
        if layer is not None:
            first, last = (span(self.channels, v) for v in (layer.inputs, layer.outputs))
            return first, last
        fixed = Span((), kernel.in_channels, 0), Span((), kernel.out_channels, 0)
        if core is None or not core.input:
            return fixed
        found = (self._known.spans.get(name) for name in (core.input[0], core.output[0]))
        return cast(
            "tuple[Span, Span]",
            tuple(
                one if one is not None and one.free else other
                for one, other in zip(found, fixed, strict=True)
            ),
        )

    def _reads(self, kernel: Kernel) -> tuple[tuple[str, int, Span], ...]:
        """What a kernel reads; one that takes a part of a tensor, as much as it writes."""
        if kernel.kind not in ("copy", "gather") or len(kernel.reads) > 1:
            return tuple(self._tensor(name, size) for name, size in kernel.reads.items())
        of = self._tensor(*next(iter(kernel.writes.items())))[1:]
        return tuple((name, *of) for name in kernel.reads)

    def _tensor(self, name: str, size: int) -> tuple[str, int, Span]:
        # kernels_of gives a copy a name of its own, and the network's ends where they change type
        of = self._known.spans.get(name.split(COPIED)[0].removesuffix("_reformat"))
        if of is None or size % of.full:
            raise KDError(
                "template-unknown",
                f"tensor {name} is not one of the exported float32 network",
                where=name,
                fix="derive kernels from the float32 export, not from a quantised file",
            )
        return name, size // of.full, of

    def _constants(
        self, kernel: Kernel, nodes: Iterable[NodeProto]
    ) -> tuple[tuple[int, Span], ...]:
        """A batch norm that is not folded holds vectors as long as its channels."""
        total = Span((), 1, 1)
        scaled = [
            (name, self._known.spans[node.output[0]])
            for node in nodes
            if node.op_type == "BatchNormalization" and self._known.spans[node.output[0]].free
            for name in node.input
            if name not in self._known.spans
        ]
        if not scaled or not kernel.weight_bytes:
            return ((kernel.weight_bytes, total),)
        each = BYTES[kernel.weight_precision]
        rest = kernel.weight_bytes - sum(each * of.full for of in dict(scaled).values())
        return (*((each, of) for of in dict(scaled).values()), (rest, total))


def _side_by_side(end: Span, value: int, found: Mapping[int, int]) -> dict[int, int]:
    """Widths of groups that nothing tells apart any more, in the teacher's proportion."""
    rest, whole = value - end.fixed, end.full - end.fixed
    made: dict[int, int] = {}
    for root, each in end.free:
        made[root] = round(rest * found[root] / whole)
        rest, whole = rest - made[root] * each, whole - found[root] * each
    return made


def _contradiction(where: str) -> KDError:
    return KDError(
        "template-widths",
        "the architecture's widths contradict each other: a layer's are not those around it",
        where=where,
        fix="search again with this teacher: kdcompile search",
    )
