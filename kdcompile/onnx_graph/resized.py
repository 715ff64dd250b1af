"""A network's ONNX file at other widths, without another export.

A network and a narrower copy of it run the same operators in the same order, so that their files
differ in sizes alone. Those of the weights, and of what each operator gives, are recorded where
both networks run in PyTorch (`Recorded`); the file is walked through once, and the sizes that it
holds as constants are replaced. Whatever does not fit the record ends the walk: a file that is not
sure to be the narrower network's is never given.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.graph import attributes
from kdcompile.onnx_graph.layers import WEIGHTED
from kdcompile.onnx_graph.opset import opset_of
from kdcompile.onnx_graph.shapes import LARGE, inferred, tensor_sizes

Shape = tuple[int, ...]
BY_CHANNEL = {"BatchNormalization", "InstanceNormalization"}
UNKNOWN = {"GroupNormalization", "LSTM", "GRU", "RNN"}  # whose constants have other sizes
INTEGERS = (TensorProto.INT64, TensorProto.INT32)


@dataclass(frozen=True)
class Recorded:
    """One run of a network.

    Args:
        weights: of each convolution and matrix product with a parameter, in order: the shape that
            it computes with, [inputs, outputs] of a matrix, and the groups.
        given: the name of each operator, in order, with the shapes that it gives.
    """

    weights: tuple[tuple[Shape, int], ...]
    given: tuple[tuple[str, tuple[Shape, ...]], ...]


def resized(
    model: ModelProto, shape: Sequence[int], before: Recorded, after: Recorded
) -> ModelProto | None:
    """The file of a narrower network, with no values of weights; None where it is not known.

    Args:
        model: the network's own file, at a fixed shape.
        shape: of its input, which both networks have.
        before: a run of the network of the file.
        after: a run of the narrower network.
    """
    alike = [name for name, _ in before.given] == [name for name, _ in after.given]
    if not alike or len(before.weights) != len(after.weights):
        return None
    try:
        return _Walk(model, shape, before, after).walked()
    except (
        _UnlikeError, KDError, LookupError, ValueError, onnx.shape_inference.InferenceError,
        onnx.defs.SchemaError,
    ):  # fmt: skip
        return None


class _UnlikeError(Exception):
    """A size does not follow."""


class _Walk:
    """The nodes in order: constants get their new sizes, then what the node gives is inferred."""

    def __init__(
        self, model: ModelProto, shape: Sequence[int], before: Recorded, after: Recorded
    ) -> None:
        self._model, self._opset = model, opset_of(model)
        graph = inferred(model, shape)
        self._old = {name: tuple(size) for name, size in tensor_sizes(graph).items()}
        self._held = {t.name: t for t in model.graph.initializer}
        self._kept: dict[str, TensorProto] = {}
        self._types: dict[str, TypeProto] = {v.name: v.type for v in graph.input}
        self._new = {v.name: self._old[v.name] for v in graph.input}
        self._weights = list(zip(before.weights, after.weights, strict=True))
        self._known: dict[Shape, set[Shape]] = defaultdict(set)
        self._sizes: dict[int, set[int]] = defaultdict(set)
        for (_, old), (_, new) in zip(before.given, after.given, strict=True):
            for one, other in zip(old, new, strict=True):
                self._known[one].add(other)
                for number, became in zip(one, other, strict=True):
                    self._sizes[number].add(became)

    def walked(self) -> ModelProto:
        nodes = [self._node(node) for node in self._model.graph.node]
        if self._weights:
            raise _UnlikeError
        made = ModelProto(ir_version=self._model.ir_version)
        made.opset_import.extend(self._model.opset_import)
        made.graph.name = self._model.graph.name
        made.graph.node.extend(nodes)
        made.graph.input.extend(self._model.graph.input)
        made.graph.output.extend(self._model.graph.output)
        made.graph.initializer.extend(self._kept.values())
        for output in made.graph.output:
            if self._new[output.name] != self._old[output.name]:
                raise _UnlikeError
        return made

    def _node(self, node: NodeProto) -> NodeProto:
        made = NodeProto()
        made.CopyFrom(node)
        data = [name for name in node.input if name in self._new]
        if not data or node.op_type in UNKNOWN:
            raise _UnlikeError
        if node.op_type == "Gather" and not self._keeps_axis(node):
            raise _UnlikeError
        lead = max(data, key=lambda name: len(self._old[name]))
        if node.op_type in WEIGHTED and node.input[1] in self._held:
            self._layer(node, made)
        for place, name in enumerate(node.input):
            if name in self._held and made.input[place] == name:
                made.input[place] = self._constant(node, place, self._held[name], lead)
        self._infer(made)
        return made

    def _keeps_axis(self, node: NodeProto) -> bool:
        """Whether what is taken is taken from as many as before."""
        name, axis = node.input[0], attributes(node).get("axis", 0)
        return name in self._new and self._new[name][axis] == self._old[name][axis]

    def _layer(self, node: NodeProto, made: NodeProto) -> None:
        """The weight and the bias of a convolution or a matrix product, and its groups."""
        if not self._weights:
            raise _UnlikeError
        (old, groups), (new, fewer) = self._weights.pop(0)
        given = attributes(node)
        if node.op_type == "Gemm" and given.get("transB", 0):
            old, new = old[::-1], new[::-1]
        if tuple(self._held[node.input[1]].dims) != old or given.get("group", 1) != groups:
            raise _UnlikeError
        made.input[1] = self._add(node, 1, self._held[node.input[1]], new)
        for attribute in made.attribute:
            if attribute.name == "group":
                attribute.i = fewer
        if len(node.input) > 2 and node.input[2] in self._held:
            bias = self._held[node.input[2]]
            first = {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, -1)
            transposed = node.op_type == "Gemm" and given.get("transB", 0)
            axis, times = (0 if transposed else first), node.op_type == "ConvTranspose"
            wide = old[axis] * (groups if times else 1)
            narrow = new[axis] * (fewer if times else 1)
            if math.prod(bias.dims) == wide == bias.dims[-1]:
                size = (*bias.dims[:-1], narrow)
                made.input[2] = self._add(node, 2, bias, size)

    def _constant(self, node: NodeProto, place: int, held: TensorProto, lead: str) -> str:
        old, new = self._old[lead], self._new[lead]
        if held.data_type in INTEGERS:
            values = self._integers(node, place, numpy_helper.to_array(held), lead)
            if values is None:
                return self._keep(held)
            name = f"{node.output[0]}/{place}"
            self._kept[name] = numpy_helper.from_array(values, name)
            return self._typed(name)
        size = _aligned(node, tuple(held.dims), old, new)
        return self._keep(held) if size == tuple(held.dims) else self._add(node, place, held, size)

    def _integers(
        self, node: NodeProto, place: int, values: np.ndarray, lead: str
    ) -> np.ndarray | None:
        """Sizes that a node is given; None where they stay."""
        source = node.input[0]
        old, new = self._old[source], self._new.get(source, self._old[source])
        if node.op_type == "Reshape" and place == 1:
            return np.array(self._reshaped(node, math.prod(new)), np.int64)
        if node.op_type == "Expand" and place == 1:
            return np.array(_only(self._known[self._old[node.output[0]]]), np.int64)
        if old == new:
            return None
        if node.op_type == "Slice" and place in (1, 2):
            axes = range(len(old))
            if len(node.input) > 3:
                axes = numpy_helper.to_array(self._held[node.input[3]]).tolist()
            pairs = zip(values.tolist(), axes, strict=True)
            return np.array([_scaled(v, old[a], new[a]) for v, a in pairs], np.int64)
        if node.op_type == "Split":
            axis = attributes(node).get("axis", 0)
            return np.array([_scaled(v, old[axis], new[axis]) for v in values.tolist()], np.int64)
        if node.op_type == "Resize" and place == 3:
            rows = zip(values.tolist(), old, new, strict=True)
            return np.array([after if v == size else v for v, size, after in rows], np.int64)
        return None

    def _reshaped(self, node: NodeProto, elements: int) -> Shape:
        old = self._old[node.output[0]]
        found = {one for one in self._known.get(old, ()) if math.prod(one) == elements}
        if not found:  # a shape that only the exporter's form of an operator has
            options = (self._sizes.get(size, {size}) for size in old)
            found = {one for one in itertools.product(*options) if math.prod(one) == elements}
        return _only(found)

    def _infer(self, node: NodeProto) -> None:
        schema = onnx.defs.get_schema(node.op_type, self._opset, node.domain)
        names = [name for name in node.input if name]
        found = onnx.shape_inference.infer_node_outputs(
            schema,
            node,
            {name: self._types[name] for name in names},
            {n: self._kept[n] for n in names if n in self._kept and self._is_small(n)},
            opset_imports=list(self._model.opset_import),
        )
        for name in node.output:
            if not name or (name not in found and name not in self._old):
                continue
            dims = found[name].tensor_type.shape.dim
            size = tuple(d.dim_value for d in dims)
            old = self._old[name]
            if 0 in size or len(size) != len(old):
                raise _UnlikeError
            if old in self._known and size not in self._known[old]:
                raise _UnlikeError
            self._types[name], self._new[name] = found[name], size

    def _is_small(self, name: str) -> bool:
        return bool(math.prod(self._kept[name].dims) <= LARGE)

    def _add(self, node: NodeProto, place: int, held: TensorProto, size: Sequence[int]) -> str:
        """A constant of another size, without values."""
        name = f"{node.output[0]}/{place}"
        made = TensorProto(name=name, data_type=held.data_type, dims=size)
        if math.prod(size) <= LARGE:
            kind = helper.tensor_dtype_to_np_dtype(held.data_type)
            made.raw_data = bytes(math.prod(size) * np.dtype(kind).itemsize)
        self._kept[name] = made
        return self._typed(name)

    def _keep(self, held: TensorProto) -> str:
        if held.name not in self._kept:
            small = math.prod(held.dims) <= LARGE
            made = TensorProto(name=held.name, data_type=held.data_type, dims=held.dims)
            self._kept[held.name] = held if small else made
            self._typed(held.name)
        return held.name

    def _typed(self, name: str) -> str:
        held = self._kept[name]
        self._types[name] = helper.make_tensor_type_proto(held.data_type, list(held.dims))
        return name


def _aligned(node: NodeProto, dims: Shape, old: Shape, new: Shape) -> Shape:
    """The shape of a constant next to data that was of one shape and is of another."""
    if node.op_type in BY_CHANNEL:
        return (new[1],) if dims == (old[1],) else _same(dims, old, new)
    axis = attributes(node).get("axis") if node.op_type == "Concat" else None
    made = list(dims)
    for back in range(1, min(len(dims), len(old)) + 1):
        if axis is not None and axis % len(old) == len(old) - back:
            continue
        if dims[-back] == old[-back]:
            made[-back] = new[-back]
        elif dims[-back] != 1 and old[-back] != new[-back]:
            raise _UnlikeError
    return tuple(made)


def _same(dims: Shape, old: Shape, new: Shape) -> Shape:
    if old != new:
        raise _UnlikeError
    return dims


def _scaled(value: int, old: int, new: int) -> int:
    """A place on an axis whose size changes; one beyond the end stays there."""
    if old == new or value >= old:
        return value
    if value * new % old:
        raise _UnlikeError
    return value * new // old


def _only(found: set[Shape] | Mapping[Shape, object]) -> Shape:
    if len(found) != 1:
        raise _UnlikeError
    return next(iter(found))
