"""Operators that are layers: convolutions, linear layers, norms; their weights are constants."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.models.onnx_import.values import Call, Node, axis_from, operator
from kdcompile.models.onnx_import.windows import padded

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
INSTANCE_NORMS = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def with_weights(module: nn.Module, **tensors: Tensor | None) -> nn.Module:
    """A module with these weights."""
    for name, tensor in tensors.items():
        if tensor is not None:
            getattr(module, name).data.copy_(tensor.reshape(getattr(module, name).shape))
    return module


def shared_by(node: Node, names: Sequence[str]) -> str:
    """What a layer is known by that runs more than once: its operator and its weights."""
    return f"{node.proto.op_type} {sorted(node.attributes.items())} {names}"


@operator("Conv")
def convolution(node: Node) -> Call:
    """[N, C, *space] by constant weights."""
    weight, bias = node.constant(1), node.constant(2) if node.has(2) else None
    space, groups = weight.dim() - 2, node.get("group", 1)
    steps = node.get("strides", [1] * space), node.get("dilations", [1] * space)
    image, pads = padded(node, list(weight.shape[2:]), *steps)
    kind: Any = CONVOLUTIONS[space]
    made = kind(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), tuple(steps[0]),
        tuple(pads), tuple(steps[1]), groups, bias is not None,
    )  # fmt: skip
    shared = shared_by(node, node.proto.input[1:])
    return Call(with_weights(made, weight=weight, bias=bias), [image], shared=shared)


@operator("ConvTranspose")
def transposed_convolution(node: Node) -> Call:
    """The same of a transposed convolution."""
    weight, bias = node.constant(1), node.constant(2) if node.has(2) else None
    space, groups = weight.dim() - 2, node.get("group", 1)
    strides = node.get("strides", [1] * space)
    dilations = node.get("dilations", [1] * space)
    pads = node.get("pads", [0] * 2 * space)
    more = node.get("output_padding", [0] * space)
    if node.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or "output_shape" in (
        node.attributes
    ):
        raise node.refused("its padding follows from an output shape")
    # what is cut more at the end than at the start is output padding below zero
    more = [m + a - b for m, a, b in zip(more, pads[:space], pads[space:], strict=True)]
    if any(m < 0 or m >= max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
        raise node.refused("its padding differs between the start and the end")
    kind: Any = TRANSPOSED[space]
    made = kind(
        weight.shape[0], weight.shape[1] * groups, tuple(weight.shape[2:]), tuple(strides),
        tuple(pads[:space]), tuple(more), groups, bias is not None, tuple(dilations),
    )  # fmt: skip
    shared = shared_by(node, node.proto.input[1:])
    return Call(with_weights(made, weight=weight, bias=bias), [node.value(0)], shared=shared)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A linear layer with weights [out, in]."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    return with_weights(made, weight=weight, bias=bias)


@operator("Gemm")
def gemm(node: Node) -> Call:
    """A linear layer where the second matrix is constant."""
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    first, second = node.value(0), node.value(1)
    third = node.value(2) if node.has(2) else None
    fits = third is None or (third.constant is not None and third.constant.dim() <= 1)
    if second.constant is not None and fits and not node.get("transA", 0):
        weight = second.constant if node.get("transB", 0) else second.constant.T
        bias = None
        if third is not None and third.constant is not None:
            bias = (third.constant * beta).expand(weight.shape[0])
        return Call(
            linear(weight * alpha, bias), [first], shared=shared_by(node, node.proto.input[1:])
        )
    flips = bool(node.get("transA", 0)), bool(node.get("transB", 0))
    return Call(affine, [first, second, third, alpha, beta, *flips])


def affine(
    a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, flip_a: bool, flip_b: bool
) -> Tensor:
    """ONNX's Gemm: alpha A B + beta C."""
    made = alpha * ((a.t() if flip_a else a) @ (b.t() if flip_b else b))
    return made if c is None else made + beta * c


@operator("MatMul")
def matmul(node: Node) -> Call:
    """A linear layer where the second matrix is constant, with the bias that is added after it."""
    second = node.value(1)
    if second.constant is None or second.constant.dim() != 2 or not node.value(0).is_float:
        return Call(torch.matmul, [node.value(0), second])
    bias, outputs, names = None, None, [second.name]
    readers = node.readers(node.proto.output[0])
    if len(readers) == 1 and readers[0].op_type == "Add":
        (reader,) = readers
        (name,) = [n for n in reader.input if n != node.proto.output[0]] or [""]
        found = node.constants(name)
        if found is not None and found.numel() == found.shape[-1:].numel() == second.shape[1]:
            node.skip(reader)
            bias, outputs, names = found.flatten(), list(reader.output), [*names, name]
    made = linear(second.constant.T, bias)
    return Call(made, [node.value(0)], shared=shared_by(node, names), outputs=outputs)


@operator("BatchNormalization")
def batch_norm(node: Node) -> Call:
    """In inference mode: one output."""
    tensors = [node.constant(i) for i in range(1, 5)]
    kind: Any = BATCH_NORMS.get(len(node.value(0).shape))
    if kind is None or node.get("training_mode", 0) or not node.get("spatial", 1):
        raise node.refused("it is not in inference mode, or not of channels")
    made = kind(tensors[0].numel(), node.get("epsilon", 1e-5), 1 - node.get("momentum", 0.9))
    names = ("weight", "bias", "running_mean", "running_var")
    return Call(with_weights(made, **dict(zip(names, tensors, strict=True))), [node.value(0)])


@operator("InstanceNormalization")
def instance_norm(node: Node) -> Call:
    """Per channel and image."""
    scale = node.constant(1)
    kind: Any = INSTANCE_NORMS.get(len(node.value(0).shape))
    if kind is None:
        raise node.refused(f"its input has shape {node.value(0).shape}")
    made = kind(scale.numel(), node.get("epsilon", 1e-5), affine=True)
    return Call(with_weights(made, weight=scale, bias=node.constant(2)), [node.value(0)])


@operator("LayerNormalization")
def layer_norm(node: Node) -> Call:
    """Over the last axes."""
    scale, size = node.constant(1), node.value(0).shape
    size = size[axis_from(node, -1) :]
    made = nn.LayerNorm(size, node.get("epsilon", 1e-5), bias=node.has(2))
    bias = node.constant(2) if node.has(2) else None
    full = [t if t is None else t.expand(size) for t in (scale, bias)]
    return Call(with_weights(made, weight=full[0], bias=full[1]), [node.value(0)])


@operator("RMSNormalization")
def rms_norm(node: Node) -> Call:
    """Over the last axes."""
    size = node.value(0).shape[axis_from(node, -1) :]
    made = nn.RMSNorm(size, node.get("epsilon", 1e-5))
    return Call(with_weights(made, weight=node.constant(1).expand(size)), [node.value(0)])


@operator("GroupNormalization")
def group_norm(node: Node) -> Call:
    """With a scale of each channel, as from opset 21 on; of each group before."""
    channels, groups = node.value(0).shape[1], int(node.attributes["num_groups"])
    scale, bias = (node.constant(i) for i in (1, 2))
    if scale.numel() == groups:
        scale, bias = (t.repeat_interleave(channels // groups) for t in (scale, bias))
    made = nn.GroupNorm(groups, channels, node.get("epsilon", 1e-5))
    return Call(with_weights(made, weight=scale, bias=bias), [node.value(0)])


@operator("PRelu")
def prelu(node: Node) -> Call:
    """With one slope, or one of each channel."""
    slope = node.constant(1)
    size = node.value(0).shape
    rest, wide = len(size) - 1, slope.numel() > 1
    if wide and (slope.dim() < rest or slope.numel() != slope.shape[slope.dim() - rest]):
        raise node.refused("its slopes are not of channels")
    return Call(with_weights(nn.PReLU(slope.numel()), weight=slope), [node.value(0)])


@operator("LRN")
def response_norm(node: Node) -> Call:
    """Across channels (Krizhevsky et al. 2012)."""
    numbers = node.get("alpha", 1e-4), node.get("beta", 0.75), node.get("bias", 1.0)
    return Call(nn.LocalResponseNorm(node.attributes["size"], *numbers), [node.value(0)])
