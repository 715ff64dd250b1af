"""A network's captured graph, and how its operators treat the channel axis."""

import operator
import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from kdcompile.core.errors import KDError

PASS = {
    "relu", "relu_", "relu6", "relu6_", "gelu", "silu", "silu_", "sigmoid", "tanh", "hardtanh",
    "hardtanh_", "hardswish", "hardswish_", "hardsigmoid", "leaky_relu", "leaky_relu_", "elu",
    "elu_", "mish", "softplus", "dropout", "dropout_", "feature_dropout", "clone", "contiguous",
    "to", "neg", "abs", "exp", "sqrt", "square", "clamp", "max_pool2d", "avg_pool2d",
    "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d",
    "_upsample_bilinear2d_aa", "pad", "constant_pad_nd", "alias", "detach", "_to_copy",
}  # fmt: skip
MERGE = {"add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_", "maximum", "minimum"}
CONVOLUTIONS = {"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"}


def captured(model: nn.Module, shape: Sequence[int]) -> ExportedProgram:
    """The graph of a network's forward pass.

    Raises:
        KDError: `trace-failed`.
    """
    try:
        device = next((p.device for p in model.parameters()), None)
        with warnings.catch_warnings():
            # nn.LSTM's own list of its weights, and tables that a forward keeps as attributes
            warnings.filterwarnings("ignore", r"The tensor attributes? .+ assigned during export")
            return torch.export.export(model, (torch.zeros(*shape, device=device),))
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


def place(node: Node) -> str:
    """The operator of a node and the innermost module around it, as a reason names it."""
    around = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return operator_name(node) + (f" in {around[-1]}" if around else "")
