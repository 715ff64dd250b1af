"""Plan of each layer: the teacher channels that it keeps, and what comes right after it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.models.channel_groups import Channels, Layout
from kdcompile.models.channel_rules import operator_name
from kdcompile.models.resize import module_widths


@dataclass(frozen=True)
class LayerPlan:
    """One resizable layer.

    `inputs` and `outputs` are the kept teacher channels in ascending order. `batch_norm` names the
    normalisation that alone reads this layer; `rectified` says that a ReLU alone reads the result.
    """

    name: str
    inputs: Tensor
    outputs: Tensor
    depthwise: bool
    runs: int
    batch_norm: str | None
    rectified: bool


def widths(channels: Channels, student: nn.Module) -> dict[int, int]:
    """How many channels of each group (by its root) the student keeps."""
    sides = [
        (layout, width)
        for name, layer in channels.layers.items()
        for layout, width in zip(
            (layer.inputs, layer.outputs), module_widths(student.get_submodule(name)), strict=True
        )
    ]
    return channels.widths_of(sides)


def indices(channels: Channels, kept: Mapping[int, Tensor], layout: Layout) -> Tensor:
    """The kept teacher channels of a layout, in the order in which they lie in a tensor."""
    parts, offset = [], 0
    for group, size, each in layout:
        chosen = kept.get(channels.root(group), torch.arange(size))
        parts.append((offset + chosen[:, None] * each + torch.arange(each)).flatten())
        offset += size * each
    return torch.cat(parts)


def layer_plans(
    channels: Channels, kept: Mapping[int, Tensor], student: nn.Module
) -> list[LayerPlan]:
    """The plan of every layer, in order of execution.

    Raises:
        KDError: `inherit-mismatch`, when the student's widths are not those of its groups.
    """
    plans = []
    for name, layer in channels.layers.items():
        inputs, outputs = (indices(channels, kept, v) for v in (layer.inputs, layer.outputs))
        module = student.get_submodule(name)
        if (len(inputs), len(outputs)) != module_widths(module):
            raise KDError(
                "inherit-mismatch",
                f"{name} is {module_widths(module)} wide in the student, the teacher's channel "
                f"groups give {(len(inputs), len(outputs))}",
                where=name,
                fix='search again with this teacher, or set student.init = "random"',
            )
        batch_norm, rectified = _after(channels, name)
        runs = len(channels.nodes[name])
        plans.append(
            LayerPlan(name, inputs, outputs, layer.is_depthwise, runs, batch_norm, rectified)
        )
    return plans


def kept_parameters(
    channels: Channels, kept: Mapping[int, Tensor]
) -> dict[str, tuple[int, Tensor]]:
    """Of each parameter that no layer owns the axis and the indices that the student keeps."""
    return {
        name: (dim, indices(channels, kept, layout))
        for name, (dim, layout) in channels.parameters.items()
    }


def _after(channels: Channels, name: str) -> tuple[str | None, bool]:
    """The batch norm and the ReLU that a layer's output goes through before anything else."""
    names = {nodes[0]: n for n, nodes in channels.nodes.items() if len(nodes) == 1}
    node, batch_norm = channels.nodes[name][0], None
    while len(node.users) == 1:
        node = next(iter(node.users))
        operator = operator_name(node)
        if operator == "batch_norm" and batch_norm is None and node in names:
            batch_norm = names[node]
        else:
            return batch_norm, operator in {"relu", "relu_"}
    return batch_norm, False
