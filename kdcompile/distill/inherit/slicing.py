"""Slice the student's weights from the teacher's: the kept channels of every layer."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from kdcompile.distill.inherit.plan import LayerPlan
from kdcompile.distill.inherit.rows import grouped_weight, set_weight
from kdcompile.models.resize import NORMS, WHOLE, output_parameters


def slice_weights(
    teacher: nn.Module,
    student: nn.Module,
    plans: Sequence[LayerPlan],
    parameters: Mapping[str, tuple[int, Tensor]],
) -> list[str]:
    """Copy the kept channels of every layer, and whatever else the two have in equal shape.

    Args:
        teacher: in inference mode.
        student: changed in place.
        plans: of all layers.
        parameters: by name the axis and the indices that the student keeps.

    Returns:
        The names of the student's tensors that are neither, and so keep their initial values.
    """
    theirs, mine = _tensors(teacher), _tensors(student)
    done: set[str] = set()
    for plan in plans:
        source = teacher.get_submodule(plan.name)
        if isinstance(source, WHOLE):
            slice_whole = next(made for kind, made in _WHOLE.items() if isinstance(source, kind))
            done |= slice_whole(theirs, mine, plan)
            continue
        for kind in ("weight", "bias", "running_mean", "running_var"):
            name = f"{plan.name}.{kind}"
            if name in theirs and (kind != "weight" or isinstance(source, NORMS)):
                mine[name].copy_(theirs[name][plan.outputs.to(theirs[name].device)])
                done.add(name)
        for extra in output_parameters(source):
            name = f"{plan.name}.{extra}"
            mine[name].copy_(theirs[name][plan.outputs.to(theirs[name].device)])
            done.add(name)
        if not isinstance(source, NORMS):
            kept = sliced(grouped_weight(source), plan)
            set_weight(student.get_submodule(plan.name), kept)
            done.add(f"{plan.name}.weight")
    for name, (dim, chosen) in parameters.items():
        mine[name].copy_(theirs[name].index_select(dim, chosen.to(theirs[name].device)))
        done.add(name)
    left = []
    for name in mine.keys() - done:
        if name in theirs and theirs[name].shape == mine[name].shape:
            mine[name].copy_(theirs[name])
        else:
            left.append(name)
    return sorted(left)


def _slice_attention(
    theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor], plan: LayerPlan
) -> set[str]:
    """Copy torch's own attention: its heads are sliced as what it reads is; the names copied."""
    rows, done = plan.outputs, set()
    width = len(theirs[f"{plan.name}.out_proj.weight"])
    thrice = torch.cat([rows, rows + width, rows + 2 * width])
    for name, first in (("in_proj_weight", thrice), ("in_proj_bias", thrice),
                        ("out_proj.weight", rows), ("out_proj.bias", rows)):  # fmt: skip
        path = f"{plan.name}.{name}"
        if path in theirs:
            kept = theirs[path][first.to(theirs[path].device)]
            mine[path].copy_(kept[:, rows.to(kept.device)] if kept.ndim == 2 else kept)
            done.add(path)
    return done


def _slice_recurrent(
    theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor], plan: LayerPlan
) -> set[str]:
    """Copy an LSTM, a GRU or torch's plain recurrent layer: its hidden units, gate by gate."""
    found = [n for n in theirs if n.startswith(f"{plan.name}.") and n in mine]
    size = theirs[f"{plan.name}.weight_hh_l0"].shape[1]
    for name in found:
        kept = theirs[name]
        units = plan.outputs.to(kept.device)
        rows = [units + start for start in range(0, len(kept), size)]
        kept = kept[torch.cat(rows)]
        if kept.ndim == 2:
            columns = plan.inputs.to(kept.device) if ".weight_ih_l0" in name else units
            # a layer behind the first reads both directions of the one before
            count = 1 if ".weight_ih_l0" in name else kept.shape[1] // size
            kept = kept[:, torch.cat([columns + n * size for n in range(count)])]
        mine[name].copy_(kept)
    return {*found}


def _slice_table(
    theirs: Mapping[str, Tensor], mine: Mapping[str, Tensor], plan: LayerPlan
) -> set[str]:
    name = f"{plan.name}.weight"
    mine[name].copy_(theirs[name][:, plan.outputs.to(theirs[name].device)])
    return {name}


_WHOLE = {
    nn.MultiheadAttention: _slice_attention,
    nn.RNNBase: _slice_recurrent,
    nn.Embedding: _slice_table,
}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach() for k, v in (*module.named_parameters(), *module.named_buffers())}


def sliced(weight: Tensor, plan: LayerPlan) -> Tensor:
    """The kept part of a weight [G, O/G, I/G, K]."""
    outputs, inputs = plan.outputs.to(weight.device), plan.inputs.to(weight.device)
    if plan.depthwise:
        return weight[inputs]
    count, width, depth = weight.shape[:3]
    rows = outputs.reshape(count, -1) % width
    columns = inputs.reshape(count, -1) % depth
    block = torch.arange(count, device=weight.device)[:, None, None]
    return weight[block, rows[:, :, None], columns[:, None, :]]
