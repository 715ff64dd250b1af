"""Micro-benchmark networks: small chains of equal layers, one kind of layer each.

Two or three equal layers make a chain, so that what comes once for a network (a change of
layout at its ends) weighs little. Sizes are those of a first, a middle and a late stage, and go
with what such a device is given: what fills a GPU would keep a CPU busy for a minute. Weights are
random: latency does not depend on them. Networks are listed so that a measurement that must stop
early has seen every kind.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from kdcompile.calib.qdq import INT8, insert_pairs, weight_storage
from kdcompile.calib.table import INT8_MAX, CalibrationTable, TensorRange
from kdcompile.onnx_graph.fp16 import to_bf16, to_fp16
from kdcompile.onnx_graph.layers import weighted_layers

INPUT = "image"
OPSET = 17  # what every TensorRT that kdcompile writes for reads
RANGE = 4.0  # of every tensor
FORMS = ("fp32", "fp16", "bf16", "int8")
"""Precisions that a network here can be written in."""

SIDES = {"cpu": (64, 32, 16), "jetson": (256, 96, 48), "workstation": (512, 192, 96)}
"""Height and width in a first, a middle and a late stage, by the kind of a target."""

Shape = tuple[int, int, int, int]
Side = Callable[[int], Shape]  # a shape from its channels


@dataclass(frozen=True)
class Chain:
    """A network of equal layers.

    Attributes:
        kind: conv, depthwise, transposed, pool, resize, pointwise, gemm, attention.
        shape: of the input, float32 [1, C, H, W].
        width: output channels of each layer.
        layers: how many.
        size, stride, dilation, groups: of a convolution; stride of the first layer alone.
    """

    kind: str
    shape: Shape
    width: int
    layers: int = 3
    size: int = 3
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def name(self) -> str:
        """Unique among `chains`."""
        channels, height = self.shape[1], self.shape[2]
        text = f"{self.kind}{self.size}-{channels}to{self.width}-{height}x{self.layers}"
        for letter, value in (("s", self.stride), ("d", self.dilation), ("g", self.groups)):
            text += f"-{letter}{value}" if value > 1 else ""
        return text


def chains(kind: str) -> tuple[Chain, ...]:
    """The set that `kdcompile targets calibrate` measures on a kind of target, in its order."""
    first, _, third = SIDES[kind]
    large, middle, small = map(_square, SIDES[kind])
    late, whole = _square(third // 2), _square(2 * first)
    return (
        # what students are made of and one of every other kind; then the same at other sizes
        Chain("conv", middle(64), 64),
        Chain("conv", large(3), 16, layers=2),
        Chain("conv", small(128), 128),
        Chain("conv", small(128), 128, dilation=2),
        Chain("conv", middle(64), 64, size=1),
        Chain("depthwise", middle(64), 64),
        Chain("pool", large(16), 16, layers=1, size=2, stride=2),
        Chain("conv", _square(8)(8), 8, layers=24, size=1),
        Chain("resize", middle(32), 32, layers=1),
        Chain("pointwise", large(16), 16),
        Chain("transposed", small(32), 32, layers=2, size=2, stride=2),
        Chain("conv", small(64), 64, groups=4),
        Chain("gemm", (1, 256, 1, 1), 1024, layers=2),
        Chain("attention", (1, 64, 16, 16), 64, layers=1),
        Chain("conv", large(16), 16),
        Chain("conv", middle(32), 32),
        Chain("conv", small(256), 256, layers=2),
        Chain("conv", large(3), 64, layers=2),
        Chain("conv", small(64), 64, dilation=2),
        Chain("conv", small(256), 256, size=1),
        Chain("depthwise", large(16), 16),
        Chain("conv", late(256), 256),
        Chain("conv", large(32), 32, layers=2, stride=2),
        Chain("pool", large(64), 64, layers=1, size=2, stride=2),
        Chain("conv", middle(8), 8),
        # more sizes, odd widths, and rarer forms
        Chain("conv", large(8), 8),
        Chain("conv", whole(3), 8, layers=2),
        Chain("conv", middle(96), 96, layers=2),
        Chain("conv", small(32), 32),
        Chain("conv", large(16), 64, layers=2, size=1),
        Chain("conv", small(32), 32, dilation=4),
        Chain("depthwise", small(256), 256),
        Chain("pointwise", middle(128), 128),
        Chain("resize", small(128), 128, layers=1),
        Chain("transposed", small(64), 32, layers=2, size=4, stride=2),
        Chain("conv", late(64), 64),
        Chain("conv", middle(24), 24, size=5),
        Chain("conv", large(3), 64, layers=1, size=7, stride=2),
        Chain("conv", large(64), 64, layers=2),
        Chain("conv", late(512), 512, layers=2),
        Chain("conv", small(512), 128, layers=2, size=1),
        Chain("conv", middle(128), 128, groups=8),
        Chain("pool", middle(64), 64, layers=2, size=3),
        Chain("conv", _square(8)(8), 8, layers=48),
        Chain("gemm", (1, 2048, 1, 1), 1024, layers=1),
        Chain("attention", (1, 128, 24, 24), 128, layers=1),
        Chain("conv", small(200), 200, layers=2),
        Chain("conv", middle(20), 44),
    )


def _square(side: int) -> Side:
    return lambda channels: (1, channels, side, side)


def model_of(chain: Chain, ir_version: int = 8) -> ModelProto:
    """The network in float32; its input is `image`, of the chain's shape.

    Raises:
        ValueError: a kind that there is not.
    """
    return _Writer(chain).model(ir_version)


def convert(model: ModelProto, form: str, software: str | None = None) -> ModelProto:
    """A float32 network in a form of `FORMS`: half inside two casts, or int8 with Q/DQ pairs.

    Every layer with weights is quantised, the last too, with ranges that are made up: an int8 layer
    takes as long at any scale. A network without such layers stays float32. How the weights are
    stored goes by the version of TensorRT, as in a build.

    Raises:
        KDError: what writing it in this form raises.
        ValueError: a form that there is not.
    """
    if form == "fp32":
        return model
    if form in ("fp16", "bf16"):
        return to_fp16(model) if form == "fp16" else to_bf16(model)
    if form != "int8":
        raise ValueError(f"no network is written in {form}")
    same = TensorRange(RANGE, RANGE / INT8_MAX, 0.0, -RANGE, RANGE)
    layers = weighted_layers(model)
    if not layers:
        return model
    tensors = {layer.data: same for layer in layers}
    table = CalibrationTable("none", "0" * 64, (("none", "0" * 64),), tensors)
    return insert_pairs(model, table, INT8, weight_storage(software), layers)


class _Writer:
    """Collects the nodes and weights of one chain."""

    def __init__(self, chain: Chain) -> None:
        self.chain, self.random = chain, np.random.default_rng(1)
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, NDArray[Any]] = {}

    def model(self, ir_version: int) -> ModelProto:
        """The network, checked."""
        data, channels = INPUT, self.chain.shape[1]
        layer = getattr(self, f"_{self.chain.kind}", None)
        if layer is None:
            raise ValueError(f"there is no chain of {self.chain.kind}")
        for number in range(self.chain.layers):
            data = layer(f"l{number}", data, channels)
            channels = self.chain.width
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            self.chain.name,
            [value(INPUT, TensorProto.FLOAT, self.chain.shape)],
            [value(data, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=ir_version
        )
        made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
        onnx.checker.check_model(made)
        return made

    def _node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def _weight(self, name: str, *size: int) -> str:
        values = self.random.standard_normal(size, np.float32) / math.sqrt(math.prod(size[1:]))
        self.weights[name] = values.astype(np.float32)
        return name

    def _bias(self, name: str, size: int) -> str:
        self.weights[name] = np.full(size, 0.01, np.float32)
        return name

    def _weighted(
        self, operator: str, name: str, data: str, channels: tuple[int, int], outputs: int,
        **attributes: Any,
    ) -> str:  # fmt: skip
        """A layer with weight, bias and ReLU; `channels` are the first axes of the weight."""
        size = [self.chain.size] * 2
        given = [
            data,
            self._weight(f"{name}_w", *channels, *size),
            self._bias(f"{name}_b", outputs),
        ]
        made = self._node(operator, given, name, kernel_shape=size, **attributes)
        return self._node("Relu", [made], f"{name}_relu")

    def _conv(self, name: str, data: str, channels: int) -> str:
        """A convolution with bias and ReLU; only the first layer of the chain has the stride."""
        c = self.chain
        weight, stride = (c.width, channels // c.groups), c.stride if name == "l0" else 1
        return self._weighted(
            "Conv", name, data, weight, c.width, group=c.groups, strides=[stride] * 2,
            dilations=[c.dilation] * 2, pads=[c.dilation * (c.size // 2)] * 4,
        )  # fmt: skip

    def _depthwise(self, name: str, data: str, channels: int) -> str:
        c = self.chain
        return self._weighted(
            "Conv", name, data, (channels, 1), channels, group=channels, strides=[c.stride] * 2,
            pads=[c.size // 2] * 4,
        )  # fmt: skip

    def _transposed(self, name: str, data: str, channels: int) -> str:
        """Doubles the resolution, with a kernel of 2 or of 4."""
        c = self.chain
        return self._weighted(
            "ConvTranspose", name, data, (channels, c.width), c.width, strides=[c.stride] * 2,
            pads=[(c.size - c.stride) // 2] * 4,
        )  # fmt: skip

    def _pool(self, name: str, data: str, channels: int) -> str:
        c = self.chain
        return self._node(
            "MaxPool", [data], name, kernel_shape=[c.size] * 2, strides=[c.stride] * 2,
            pads=[(c.size - 1) // 2] * 4,
        )  # fmt: skip

    def _resize(self, name: str, data: str, channels: int) -> str:
        self.weights[f"{name}_scales"] = np.array([1, 1, 2, 2], np.float32)
        return self._node(
            "Resize", [data, "", f"{name}_scales"], name, mode="linear",
            coordinate_transformation_mode="half_pixel",
        )  # fmt: skip

    def _pointwise(self, name: str, data: str, channels: int) -> str:
        """Three operators that a compiler fuses and a library may not; each chain is one kernel."""
        bias = self._weight(f"{name}_b", 1, channels, 1, 1)
        return self._node("Sigmoid", [self._node("Mul", [data, bias], f"{name}_mul")], name)

    def _gemm(self, name: str, data: str, channels: int) -> str:
        if name == "l0":
            data = self._node("Flatten", [data], "flat", axis=1)
        weight = self._weight(f"{name}_w", self.chain.width, channels)
        bias = self._bias(f"{name}_b", self.chain.width)
        return self._node("Gemm", [data, weight, bias], name, transB=1)

    def _attention(self, name: str, data: str, channels: int) -> str:
        """Self-attention of one head over the pixels, its three projections before it."""
        pixels = self.chain.shape[2] * self.chain.shape[3]
        self.weights[f"{name}_shape"] = np.array([1, channels, pixels], np.int64)
        tokens = self._node("Reshape", [data, f"{name}_shape"], f"{name}_rows")
        tokens = self._node("Transpose", [tokens], f"{name}_tokens", perm=[0, 2, 1])
        query, key, value = (
            self._node(
                "MatMul", [tokens, self._weight(f"{name}_{part}w", channels, channels)],
                f"{name}_{part}",
            )
            for part in "qkv"
        )  # fmt: skip
        turned = self._node("Transpose", [key], f"{name}_kt", perm=[0, 2, 1])
        self.weights[f"{name}_scale"] = np.array(channels**-0.5, np.float32)
        scores = self._node("MatMul", [query, turned], f"{name}_qk")
        scores = self._node("Mul", [scores, f"{name}_scale"], f"{name}_scaled")
        shares = self._node("Softmax", [scores], f"{name}_softmax", axis=-1)
        return self._node("MatMul", [shares, value], name)
