"""Capture a network's graph; which operators pass the channel axis on, move it or merge it."""

import operator
import warnings

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from kdcompile.core.errors import KDError
from kdcompile.models.examples import Example, moved_to

POINTWISE = {
    "relu", "relu_", "relu6", "relu6_", "gelu", "gelu_", "silu", "silu_", "sigmoid", "sigmoid_",
    "tanh", "tanh_", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "hardsigmoid",
    "hardsigmoid_", "leaky_relu", "leaky_relu_", "elu", "elu_", "mish", "mish_", "softplus",
    "dropout", "dropout_", "feature_dropout", "clone", "contiguous", "to", "neg", "abs", "exp",
    "log", "sqrt", "rsqrt", "square", "pow", "clamp", "clamp_min", "alias", "detach", "_to_copy",
    "erf", "reciprocal", "softmax", "log_softmax", "cumsum",
}  # fmt: skip
SPATIAL = {  # of images, whose channels are axis 1
    "max_pool1d", "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d",
    "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "max_pool3d", "avg_pool3d",
    "adaptive_avg_pool3d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d",
    "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa",
}  # fmt: skip
MOVES = {
    "permute", "transpose", "movedim", "t", "numpy_T", "mT", "unsqueeze", "squeeze", "expand",
    "expand_as", "select", "slice", "roll", "split", "chunk",
    "split_with_sizes", "unbind", "repeat", "pad", "constant_pad_nd",
}  # fmt: skip
PIXELS = {"pixel_shuffle", "pixel_unshuffle"}
SPLITS = {"split", "chunk", "split_with_sizes", "slice"}
PRODUCTS = {"matmul", "bmm", "scaled_dot_product_attention"}
MAKE = {"new_zeros", "new_ones", "new_full", "new_empty"}  # another tensor of that type
REDUCE = {"mean", "sum", "amax", "amin", "var", "linalg_vector_norm"}
RESHAPE = {"flatten", "view", "reshape", "_unsafe_view", "unflatten", "view_as", "reshape_as"}
MERGE = {
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum", "addcmul",
    "addcmul_", "where", "lerp",
}  # fmt: skip
CONVOLUTIONS = {
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip
WRAPPERS = {"wrap_with_autocast", "wrap_with_set_grad_enabled"}  # of a graph that they run
RECURRENT = {"lstm", "gru", "rnn_tanh", "rnn_relu"}


def capture_graph(model: nn.Module, example: Example) -> ExportedProgram:
    """The graph of a network's forward pass.

    Args:
        model: in inference mode.
        example: its input tensors, or the shape of its one image.

    Raises:
        KDError: `trace-failed`.
    """
    try:
        with warnings.catch_warnings():
            # nn.LSTM's own list of its weights, and tables that a forward keeps as attributes
            warnings.filterwarnings("ignore", r"The tensor attributes? .+ assigned during export")
            return torch.export.export(model, moved_to(model, example))
    except Exception as error:
        raise KDError(
            "trace-failed",
            f"the teacher's forward pass cannot be captured: {str(error).strip().splitlines()[0]}",
            where=type(model).__name__,
            fix='write the student yourself: student.family = "student.py:build"',
        ) from error


def operator_name(node: Node) -> str:
    """The operator that a node calls, without its namespace: `conv2d`, `relu`."""
    target = node.target
    if target is operator.getitem:
        return "getitem"
    return str((getattr(target, "_schema", None) and target._schema.name) or target).split("::")[-1]  # type: ignore[union-attr]


def describe_node(node: Node) -> str:
    """The operator of a node and the innermost module around it, as a reason names it."""
    around = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return operator_name(node) + (f" in {around[-1]}" if around else "")
