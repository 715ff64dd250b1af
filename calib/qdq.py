"""Explicit, symmetric Q/DQ: the form of int8 that ONNX Runtime and every TensorRT since 8.0 read.

A pair goes on the data input and on the weight of each quantised layer, so that TensorRT can fuse a
layer with the activation after it and with the next layer's Q; in a mixed network one may stand on
residual branches too (`residual`). The bias stays float32. ONNX Runtime's own quantiser is not
used: it wants to calibrate by itself, quantises the bias to int32, which TensorRT refuses, and puts
pairs on outputs and between fused nodes.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.calib.table import DEAD_SCALE, INT8_MAX, CalibrationTable
from kdcompile.core.errors import KDError, nearest
from kdcompile.onnx_graph.layers import Layer, quantised_layers

if TYPE_CHECKING:
    from kdcompile.targets import Target

Storage = Literal["int8", "float"]
FP8_SINCE = 10  # the first TensorRT whose parser reads fp8 pairs
SMALLEST_SCALE = 2.0**-126  # the smallest normal float32


@dataclass(frozen=True)
class Grid:
    """What values are rounded to: an ONNX element type and its largest magnitude."""

    element: int
    maximum: float


INT8 = Grid(TensorProto.INT8, INT8_MAX)


def insert_qdq(
    model: ModelProto,
    table: CalibrationTable,
    storage: Storage = "int8",
    layers: Collection[str] | None = None,
    residuals: Mapping[str, str] | None = None,
) -> ModelProto:
    """The network with Q/DQ pairs around its quantised layers (see `layers.quantised_layers`).

    Args:
        model: float32, of opset 13 or newer.
        table: a range for the data input of each layer that is quantised here.
        storage: `int8` stores the rounded weights and a DequantizeLinear, a quarter of the size;
            `float` stores float32 weights and a pair, the only form that older TensorRT 8 reads.
            Both give the same numbers.
        layers: names of those to quantise (`Layer.name`); None for all, none for a plain copy.
        residuals: sums by their output, each with the term that comes through a pair too
            (`residual.residual_branches`).

    Raises:
        KDError: `calib-table`: the table lacks a tensor, so it is of another network;
            `calib-layer`: no quantisable layer has such a name.
    """
    chosen = choose_layers(model, layers)
    return insert_pairs(model, table, INT8, storage, chosen, residuals)


def choose_layers(model: ModelProto, names: Collection[str] | None) -> list[Layer]:
    """The quantisable layers of these names, in the graph's order; None for all.

    Raises:
        KDError: `calib-layer`.
    """
    found = quantised_layers(model)
    if names is None:
        return found
    known = {layer.name for layer in found}
    unknown = sorted(set(names) - known)
    if unknown:
        raise KDError(
            "calib-layer",
            f"the network has no quantisable layer {unknown[0]!r}{nearest(unknown[0], known)}",
            where="layers",
            fix=f"name some of {', '.join(sorted(known)) or '(it has none)'}",
        )
    return [layer for layer in found if layer.name in names]


def insert_pairs(
    model: ModelProto,
    table: CalibrationTable,
    grid: Grid,
    storage: Storage,
    layers: list[Layer],
    residuals: Mapping[str, str] | None = None,
) -> ModelProto:
    """`insert_qdq` for layers of this model and any grid; stored weights only where it is int8.

    Raises:
        KDError: `calib-table`.
    """
    sums = residuals or {}
    paired = {layer.node.output[0]: layer.data for layer in layers} | dict(sums)
    _check_ranges(paired.values(), table)
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    data_of: dict[str, str] = {}
    weight_of, before = {}, {}
    for reader in (node.output[0] for node in model.graph.node if node.output[0] in paired):
        data = paired[reader]
        if data not in data_of:  # before the first that reads it
            scale = _data_scale(table.tensors[data].scale, grid)
            data_of[data], before[reader] = _pair(result, data, scale, None, grid)
    for layer in layers:
        if (layer.weight, layer.axis) not in weight_of:
            name, nodes = _weight(result, layer, weights[layer.weight], storage, grid)
            weight_of[layer.weight, layer.axis] = name
            before.setdefault(layer.node.output[0], []).extend(nodes)
    places = {layer.node.output[0]: layer for layer in layers}
    body = []
    for node in graph.node:
        layer_here = places.get(node.output[0])
        body += before.get(node.output[0], [])
        if node.output[0] in sums:
            node.input[:] = [data_of[n] if n == paired[node.output[0]] else n for n in node.input]
        if layer_here is not None:
            node.input[0] = data_of[layer_here.data]
            node.input[1] = weight_of[layer_here.weight, layer_here.axis]
        body.append(node)
    _finish(result, body)
    return result


def _check_ranges(tensors: Iterable[str], table: CalibrationTable) -> None:
    missing = sorted(set(tensors) - set(table.tensors))
    if missing:
        raise KDError(
            "calib-table",
            f"the table has no range for {missing[0]}",
            where="calibration.json",
            fix="calibrate this network: kdcompile calibrate",
        )


def weight_scales(
    weight: NDArray[np.float32], axis: int | None, grid: Grid = INT8
) -> NDArray[np.float32]:
    """max|w| over the grid's largest value for each index of `axis`, or one for the whole weight.

    A channel of zeros gets scale 1, since TensorRT refuses a scale of zero.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    return _scales(np.abs(weight).max(axis=others), grid)


def _data_scale(of_int8: float, grid: Grid) -> NDArray[np.float32]:
    """The table's scale, to the last bit on the int8 grid, or that of the same range on another."""
    return np.asarray(max(of_int8 * (INT8_MAX / grid.maximum), SMALLEST_SCALE), dtype=np.float32)


def _scales(amax: NDArray[Any], grid: Grid) -> NDArray[np.float32]:
    scales = np.asarray(amax / grid.maximum, dtype=np.float32)
    return np.where(scales >= SMALLEST_SCALE, scales, np.float32(DEAD_SCALE)).astype(np.float32)


def quantise(
    weight: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None
) -> NDArray[np.int8]:
    """Rounded half to even, as QuantizeLinear does, and clipped to -127..127."""
    if axis is not None:
        scales = scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    rounded: NDArray[np.int8] = np.rint(weight / scales).clip(-INT8_MAX, INT8_MAX).astype(np.int8)
    return rounded


def _weight(
    model: ModelProto, layer: Layer, weight: NDArray[np.float32], storage: Storage, grid: Grid
) -> tuple[str, list[NodeProto]]:
    scales = weight_scales(weight, layer.axis, grid)
    if storage == "float":
        return _pair(model, layer.weight, scales, layer.axis, grid)
    stored = f"{layer.weight}_int8"
    rounded = quantise(weight, scales, layer.axis)
    model.graph.initializer.append(numpy_helper.from_array(rounded, stored))
    scale, zero = _parameters(model, layer.weight, scales, grid)
    return _dequantise(stored, layer.weight, scale, zero, layer.axis)


def _pair(
    model: ModelProto, name: str, scales: NDArray[np.float32], axis: int | None, grid: Grid
) -> tuple[str, list[NodeProto]]:
    scale, zero = _parameters(model, name, scales, grid)
    quantised = f"{name}_quantized"
    node = helper.make_node(
        "QuantizeLinear",
        [name, scale, zero],
        [quantised],
        name=f"{name}_QuantizeLinear",
        **_axis(axis),
    )
    result, nodes = _dequantise(quantised, name, scale, zero, axis)
    return result, [node, *nodes]


def _dequantise(
    source: str, name: str, scale: str, zero: str, axis: int | None
) -> tuple[str, list[NodeProto]]:
    result = f"{name}_dequantized"
    node = helper.make_node(
        "DequantizeLinear",
        [source, scale, zero],
        [result],
        name=f"{name}_DequantizeLinear",
        **_axis(axis),
    )
    return result, [node]


def _axis(axis: int | None) -> dict[str, Any]:
    return {} if axis is None else {"axis": axis}


def _parameters(
    model: ModelProto, name: str, scales: NDArray[np.float32], grid: Grid
) -> tuple[str, str]:
    """Constants of a scale and of its zero points, all 0: TensorRT asks for them."""
    scale, zero = f"{name}_scale", f"{name}_zero_point"
    zeros = helper.make_tensor(zero, grid.element, scales.shape, bytes(scales.size), raw=True)
    model.graph.initializer.append(numpy_helper.from_array(scales, scale))
    model.graph.initializer.append(zeros)
    return scale, zero


def _finish(model: ModelProto, body: list[NodeProto]) -> None:
    """Set the nodes, drop constants that nothing reads any more, and check the file."""
    graph = model.graph
    nodes = [NodeProto.FromString(node.SerializeToString()) for node in body]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} | {v.name for v in graph.output}
    kept: list[TensorProto] = [t for t in graph.initializer if t.name in read]
    kept = [TensorProto.FromString(t.SerializeToString()) for t in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    onnx.checker.check_model(model, full_check=True)


def may_be_fp8(precision: str, target: "Target") -> bool:
    """Whether a network in fp8 is a candidate."""
    tensorrt = target.software
    known = "fp8" in target.precisions and tensorrt is not None
    return precision in ("auto", "fp8") and known and _generation(str(tensorrt)) >= FP8_SINCE


def _generation(tensorrt: str) -> int:
    """The major version of "10.3" or, for a range, of its first."""
    return int(tensorrt.split(".")[0])


def weight_storage(tensorrt: str | None) -> Storage:
    """How weights are stored for a target's TensorRT ("10.3", "8.6..11", None for none).

    Int8 constants are read since TensorRT 10; an 8.x of the range asks for float32 and a pair.
    """
    return "float" if tensorrt is not None and _generation(tensorrt) < 10 else "int8"
