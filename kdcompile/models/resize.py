"""Resize a module: which modules can be given other widths, and the module with those widths."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from kdcompile.models.channel_groups import Channels, Layer, Layout

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAST_NORMS = (nn.LayerNorm, nn.RMSNorm)  # of the last axis
NORMS = (*BATCH_NORMS, *LAST_NORMS, nn.GroupNorm)
RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
RESIZABLE = (
    *CONVOLUTIONS,
    nn.Linear,
    *NORMS,
    nn.MultiheadAttention,
    nn.Embedding,
    *RECURRENT,
)
# of several tensors, or of a table: only the class itself is resized, not what derives from it
WHOLE = (nn.MultiheadAttention, nn.Embedding, nn.RNNBase)
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

    A subclass can where its tensors are those of its torch class and parameters with one number for
    each output, and where it really gives the requested channels at half its widths, which is tried
    on shapes alone.

    Args:
        module: of the teacher.
        size: its input [N, C, *space], or [..., C] of a linear layer.
    """
    kind, name = plain_kind(module), type(module).__name__
    if kind is None:
        return f"there is no rule for {name}"
    if isinstance(module, nn.MultiheadAttention) and module.bias_k is not None:
        return f"there is no rule for {name} with biases of its keys"
    if isinstance(module, nn.RNNBase) and module.proj_size:
        return f"there is no rule for {name} with projections"
    if type(module) is kind:
        return None
    if issubclass(kind, WHOLE):
        return f"there is no rule for {name}"
    own = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
    more = sorted(set(own) - STATE - set(output_parameters(module)))
    if more:
        return f"{name} has tensors that a {kind.__name__} has not ({', '.join(more)})"
    if issubclass(kind, NORMS) and not issubclass(kind, BATCH_NORMS):
        return None  # the size is not the module's own where its forward transposes
    widths = _halved(module)
    made = next(reversed([v for k, v in widths.items() if k != "groups"]))
    axis = -1 if issubclass(kind, nn.Linear) else 1
    try:
        with torch.no_grad():
            narrow = resize(module, widths).to("meta").eval()
            given = list(size)
            given[axis] = next(iter(widths.values()))
            found = narrow(torch.empty(*given, device="meta"))
    except Exception:  # whatever the user's forward raises
        return f"{name} does not run at other widths"
    if not isinstance(found, torch.Tensor) or found.ndim < 2 or found.shape[axis] != made:
        return f"{name} gives other channels than its own at other widths"
    return None


def output_parameters(module: nn.Module) -> list[str]:
    """Parameters that a subclass has beside those of its torch class, one number an output each."""
    if not issubclass(type(module), (nn.Linear, *CONVOLUTIONS)):
        return []
    outputs = module_widths(module)[1]
    return [
        name
        for name, value in module.named_parameters(recurse=False)
        if name not in STATE and len(value) == value.numel() == outputs
    ]


def _halved(module: Any) -> dict[str, int]:
    """Constructor arguments for half of a module's widths: inputs first, outputs last."""
    if isinstance(module, BATCH_NORMS):
        return {"num_features": max(1, module.num_features // 2)}
    if isinstance(module, nn.Linear):
        sides = (module.in_features, module.out_features)
        inputs, outputs = (max(1, side // 2) for side in sides)
        return {"in_features": inputs, "out_features": outputs}
    groups = module.groups
    if groups == module.in_channels:
        half, each = max(1, groups // 2), module.out_channels // groups
        return {"in_channels": half, "groups": half, "out_channels": half * each}
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
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module, widths["embed_dim"])
    if isinstance(module, nn.RNNBase):
        return _recurrent(module, widths)
    names = set(kind.__constants__)  # torch's own list of what its constructor takes
    names.discard("normalized_shape")
    if not isinstance(module, TRANSPOSED):
        names.discard("output_padding")
    arguments = {name: getattr(module, name) for name in names} | dict(widths)
    if not isinstance(module, (*BATCH_NORMS, nn.GroupNorm, nn.RMSNorm, nn.Embedding)):
        arguments["bias"] = module.bias is not None
    fresh: nn.Module = kind(**arguments)
    if type(module) is kind:
        return fresh
    # a subclass's own constructor is unknown: its object is kept, with the tensors of the new one
    made = copy.deepcopy(module)
    outputs = module_widths(fresh)[1]
    for name in output_parameters(module):
        made._parameters[name] = nn.Parameter(getattr(module, name).detach()[:outputs].clone())
    made._parameters.update(fresh._parameters)
    made._buffers.update(fresh._buffers)
    for name in widths:
        setattr(made, name, getattr(fresh, name))
    return made


def _attention(module: nn.MultiheadAttention, width: int) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(
        width,
        module.num_heads,
        module.dropout,
        bias=module.in_proj_bias is not None,
        add_zero_attn=module.add_zero_attn,
        batch_first=module.batch_first,
    )


def _recurrent(module: nn.RNNBase, widths: Mapping[str, int]) -> nn.RNNBase:
    kind: Any = type(module)
    names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
    arguments = {name: getattr(module, name) for name in names}
    if isinstance(module, nn.RNN):
        arguments["nonlinearity"] = module.nonlinearity
    made: nn.RNNBase = kind(**arguments, **widths)
    return made


def constructor_arguments(layer: Layer, inputs: int, outputs: int) -> dict[str, int]:
    """The constructor arguments that give a layer these widths."""
    found = dict(zip(_width_names(layer.kind), (inputs, outputs), strict=False))
    if "in_channels" in found:
        found["groups"] = inputs if layer.is_depthwise else layer.groups
    return found


def module_widths(module: nn.Module) -> tuple[int, int]:
    """Input and output channels of a resizable module."""
    found = [getattr(module, name) for name in _width_names(type(module))]
    widths = [int(width[0] if isinstance(width, tuple) else width) for width in found]
    return widths[0], widths[-1]


def _width_names(kind: type[nn.Module]) -> tuple[str, ...]:
    """Which constructor arguments are widths: that of the inputs and the outputs, or of both."""
    if issubclass(kind, nn.Linear):
        return "in_features", "out_features"
    if issubclass(kind, nn.MultiheadAttention):
        return ("embed_dim",)
    if issubclass(kind, LAST_NORMS):
        return ("normalized_shape",)
    if issubclass(kind, nn.GroupNorm):
        return ("num_channels",)
    if issubclass(kind, nn.Embedding):
        return ("embedding_dim",)
    if issubclass(kind, nn.RNNBase):
        return "input_size", "hidden_size"
    return ("num_features",) if issubclass(kind, BATCH_NORMS) else ("in_channels", "out_channels")


def sides(widths: Mapping[str, int]) -> tuple[int, int]:
    """Input and output channels in a module's constructor arguments."""
    # inputs come before outputs by name too, but for an LSTM's
    names = sorted(n for n in widths if n != "groups")
    first, *rest = (widths[n] for n in (reversed(names) if "input_size" in widths else names))
    return first, rest[0] if rest else first


def architecture_of(channels: Channels, width: Callable[[Layout], int]) -> dict[str, Any]:
    """What an architecture says of widths; `parameters`, `attributes` where there are any."""
    modules = {
        name: constructor_arguments(layer, width(layer.inputs), width(layer.outputs))
        for name, layer in channels.layers.items()
    }
    made: dict[str, Any] = {"modules": modules}
    if channels.parameters:
        made["parameters"] = {n: [dim, width(v)] for n, (dim, v) in channels.parameters.items()}
    if channels.attributes:
        made["attributes"] = {
            path: {name: width(layout) for name, layout in named.items()}
            for path, named in channels.attributes.items()
        }
    return made


def narrow(network: nn.Module, architecture: Mapping[str, Any]) -> None:
    """Give a network the widths of an architecture, in place; resized layers have fresh weights.

    Args:
        network: a copy of the teacher.
        architecture: with what `architecture_of` gives.
    """
    for name, widths in architecture["modules"].items():
        replace_module(network, name, resize(network.get_submodule(name), widths))
    for name, (dim, width) in architecture.get("parameters", {}).items():
        owner, _, leaf = name.rpartition(".")
        old = network.get_parameter(name)
        if width < old.shape[dim]:
            kept = old.detach().narrow(dim, 0, width).clone()
            setattr(network.get_submodule(owner), leaf, nn.Parameter(kept))
    for path, named in architecture.get("attributes", {}).items():
        for name, width in named.items():
            _set_number(network.get_submodule(path), name, width)


def _set_number(module: nn.Module, name: str, width: int) -> None:
    """Set a number that a module keeps: `width`, or `shape.0`, the first of several."""
    leaf, _, place = name.partition(".")
    if not place:
        setattr(module, leaf, width)
        return
    several = list(getattr(module, leaf))
    several[int(place)] = width
    setattr(module, leaf, type(getattr(module, leaf))(several))


def copied(network: nn.Module) -> nn.Module:
    """A copy of a network that shares its tensors.

    What a forward pass keeps in its modules stays in the copy: run on shapes alone, a table that is
    made at the first call would have no values ever after.
    """
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    owner, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(owner), leaf, module)
