"""Explicit, symmetric Q/DQ: the form of int8 that ONNX Runtime and every TensorRT since 8.0 read.

A pair goes on the data input and on the weight of each quantised layer and nowhere else, so that
TensorRT can fuse a layer with the activation after it and with the next layer's Q. The bias stays
float32. ONNX Runtime's own quantiser is not used: it wants to calibrate by itself, quantises the
bias to int32, which TensorRT refuses, and puts pairs on outputs and between fused nodes.
"""

from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.calib.layers import Layer, quantised_layers
from kdcompile.calib.table import DEAD_SCALE, INT8_MAX, CalibrationTable
from kdcompile.errors import KDError

Storage = Literal["int8", "float"]
SMALLEST_SCALE = 2.0**-126  # the smallest normal float32


def insert_qdq(model: ModelProto, table: CalibrationTable, storage: Storage = "int8") -> ModelProto:
    """The network with Q/DQ pairs around its quantised layers (see `layers.quantised_layers`).

    Args:
        model: float32, of opset 13 or newer.
        table: a range for the data input of each quantised layer.
        storage: `int8` stores the rounded weights and a DequantizeLinear, a quarter of the size;
            `float` stores float32 weights and a pair, the only form that older TensorRT 8 reads.
            Both give the same numbers.

    Raises:
        KDError: `calib-table`: the table lacks a tensor, so it is of another network.
    """
    layers = quantised_layers(model)
    missing = sorted({layer.data for layer in layers} - set(table.tensors))
    if missing:
        raise KDError(
            "calib-table",
            f"the table has no range for {missing[0]}",
            where="calibration.json",
            fix="calibrate this network: kdcompile calibrate",
        )
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    data_of, weight_of, before = {}, {}, {}
    for layer in layers:
        if layer.data not in data_of:
            scale = np.float32(table.tensors[layer.data].scale)
            data_of[layer.data], nodes = _pair(result, layer.data, np.asarray(scale), None)
            before[layer.node.output[0]] = nodes
        if (layer.weight, layer.axis) not in weight_of:
            name, nodes = _weight(result, layer, weights[layer.weight], storage)
            weight_of[layer.weight, layer.axis] = name
            before.setdefault(layer.node.output[0], []).extend(nodes)
    places = {layer.node.output[0]: layer for layer in layers}
    body = []
    for node in graph.node:
        layer_here = places.get(node.output[0])
        if layer_here is not None:
            body += before.get(node.output[0], [])
            node.input[0] = data_of[layer_here.data]
            node.input[1] = weight_of[layer_here.weight, layer_here.axis]
        body.append(node)
    _finish(result, body)
    return result


def weight_scales(weight: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """max|w| / 127 for each index of `axis`, or one for the whole weight.

    A channel of zeros gets scale 1, since TensorRT refuses a scale of zero.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    scales = np.asarray(np.abs(weight).max(axis=others) / INT8_MAX, dtype=np.float32)
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
    model: ModelProto, layer: Layer, weight: NDArray[np.float32], storage: Storage
) -> tuple[str, list[NodeProto]]:
    scales = weight_scales(weight, layer.axis)
    if storage == "float":
        return _pair(model, layer.weight, scales, layer.axis)
    stored = f"{layer.weight}_int8"
    rounded = quantise(weight, scales, layer.axis)
    model.graph.initializer.append(numpy_helper.from_array(rounded, stored))
    scale, zero = _parameters(model, layer.weight, scales)
    return _dequantise(stored, layer.weight, scale, zero, layer.axis)


def _pair(
    model: ModelProto, name: str, scales: NDArray[np.float32], axis: int | None
) -> tuple[str, list[NodeProto]]:
    scale, zero = _parameters(model, name, scales)
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


def _parameters(model: ModelProto, name: str, scales: NDArray[np.float32]) -> tuple[str, str]:
    """Constants of a scale and of its zero points, all 0 and int8, which TensorRT asks for."""
    scale, zero = f"{name}_scale", f"{name}_zero_point"
    zeros = np.zeros(scales.shape, np.int8)
    model.graph.initializer.append(numpy_helper.from_array(scales, scale))
    model.graph.initializer.append(numpy_helper.from_array(zeros, zero))
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
