"""The kept channels of every weight, as the teacher has them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdcompile.distill.inherit.plan import BATCH_NORMS, LayerPlan
from kdcompile.distill.inherit.rows import grouped_weight, set_weight


def slice_weights(teacher: nn.Module, student: nn.Module, plans: Sequence[LayerPlan]) -> list[str]:
    """Copy the kept channels of every layer, and whatever else the two have in equal shape.

    Returns:
        The names of the student's tensors that are neither, and so keep their initial values.
    """
    theirs, mine = _tensors(teacher), _tensors(student)
    done = set()
    for plan in plans:
        source = teacher.get_submodule(plan.name)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            name = f"{plan.name}.{kind}"
            if name in theirs and (kind != "weight" or isinstance(source, BATCH_NORMS)):
                mine[name].copy_(theirs[name][plan.outputs.to(theirs[name].device)])
                done.add(name)
        if not isinstance(source, BATCH_NORMS):
            kept = sliced(grouped_weight(source), plan)
            set_weight(student.get_submodule(plan.name), kept)
            done.add(f"{plan.name}.weight")
    left = []
    for name in mine.keys() - done:
        if name in theirs and theirs[name].shape == mine[name].shape:
            mine[name].copy_(theirs[name])
        else:
            left.append(name)
    return sorted(left)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in (*module.named_parameters(), *module.named_buffers())}


def sliced(weight: Tensor, plan: LayerPlan) -> Tensor:
    """The kept part of a weight [G, O/G, I/G, K]."""
    outputs, inputs = plan.outputs.to(weight.device), plan.inputs.to(weight.device)
    if plan.depthwise:
        return weight[outputs]
    count, width, depth = weight.shape[:3]
    rows = outputs.reshape(count, -1) % width
    columns = inputs.reshape(count, -1) % depth
    block = torch.arange(count, device=weight.device)[:, None, None]
    return weight[block, rows[:, :, None], columns[:, None, :]]
