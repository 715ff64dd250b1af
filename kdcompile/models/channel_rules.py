"""Capture a network's graph; rules for its operators' channel axis and for resizing modules."""

import copy
import operator
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

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


def capture_graph(model: nn.Module, shape: Sequence[int]) -> ExportedProgram:
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


def describe_node(node: Node) -> str:
    """The operator of a node and the innermost module around it, as a reason names it."""
    around = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return operator_name(node) + (f" in {around[-1]}" if around else "")


RESIZABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
STATE = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


def plain_kind(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch's that a module is of, or is derived from; None where it is none."""
    return next((kind for kind in RESIZABLE if isinstance(module, kind)), None)


def changes_forward(module: nn.Module) -> bool:
    """Whether a resizable module computes something else than its torch class does."""
    kind, own = plain_kind(module), type(module)
    names = ("forward", "_conv_forward")
    return any(getattr(own, name, None) is not getattr(kind, name, None) for name in names)


def why_fixed(module: nn.Module, size: Sequence[int]) -> str | None:
    """Why a module cannot be given other widths; None where it can.

    A subclass can where it has no tensors next to those of its torch class, and where it really
    gives the requested channels at half its widths, which is tried on shapes alone.

    Args:
        module: of the teacher.
        size: its input [N, C, *space], or [N, C] of a linear layer.
    """
    kind, name = plain_kind(module), type(module).__name__
    if kind is None:
        return f"there is no rule for {name}"
    if type(module) is kind:
        return None
    own = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
    more = sorted(set(own) - STATE)
    if more:
        return f"{name} has tensors that a {kind.__name__} has not ({', '.join(more)})"
    widths = _halved(module)
    made = next(reversed([v for k, v in widths.items() if k != "groups"]))
    try:
        with torch.no_grad():
            narrow = resize(module, widths).to("meta").eval()
            found = narrow(torch.empty(size[0], next(iter(widths.values())), *size[2:]).to("meta"))
    except Exception:  # whatever the user's forward raises
        return f"{name} does not run at other widths"
    if not isinstance(found, torch.Tensor) or found.ndim < 2 or found.shape[1] != made:
        return f"{name} gives other channels than its own at other widths"
    return None


def _halved(module: Any) -> dict[str, int]:
    """Constructor arguments for half of a module's widths: inputs first, outputs last."""
    if isinstance(module, NORMS):
        return {"num_features": max(1, module.num_features // 2)}
    if isinstance(module, nn.Linear):
        sides = (module.in_features, module.out_features)
        inputs, outputs = (max(1, side // 2) for side in sides)
        return {"in_features": inputs, "out_features": outputs}
    groups = module.groups
    if groups == module.in_channels == module.out_channels:
        half = max(1, groups // 2)
        return {"in_channels": half, "groups": half, "out_channels": half}
    inputs, outputs = (
        max(1, side // groups // 2) * groups for side in (module.in_channels, module.out_channels)
    )
    return {"in_channels": inputs, "out_channels": outputs}


def resize(module: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    """A module of the same kind with some of its widths replaced, and fresh weights.

    Args:
        module: one for which `why_fixed` gives None.
        widths: constructor arguments of its torch class.
    """
    kind: Any = plain_kind(module)
    assert kind is not None, "only resizable modules are in an architecture"
    names = set(kind.__constants__)  # torch's own list of what its constructor takes
    if not isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d):
        names.discard("output_padding")
    arguments = {name: getattr(module, name) for name in names} | dict(widths)
    if not isinstance(module, NORMS):
        arguments["bias"] = module.bias is not None
    fresh: nn.Module = kind(**arguments)
    if type(module) is kind:
        return fresh
    # a subclass's own constructor is unknown: its object is kept, with the tensors of the new one
    made = copy.deepcopy(module)
    made._parameters.update(fresh._parameters)
    made._buffers.update(fresh._buffers)
    for name, value in widths.items():
        setattr(made, name, value)
    return made
