"""A student that starts from the teacher's knowledge: selected channels, reconstructed layers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.distill.evaluate import in_inference
from kdcompile.distill.inherit.attention import find_heads, turned
from kdcompile.distill.inherit.importance import Loss, places, readers, taylor
from kdcompile.distill.inherit.plan import kept_parameters, layer_plans, widths
from kdcompile.distill.inherit.reconstruct import solve_layers
from kdcompile.distill.inherit.select import explaining, most
from kdcompile.distill.inherit.slicing import slice_weights
from kdcompile.models.channel_groups import Channels, length
from kdcompile.models.channels import trace
from kdcompile.models.dropped import is_gone, members, tied
from kdcompile.models.examples import Inputs, inputs_of
from kdcompile.models.resize import BATCH_NORMS


def inherit(
    teacher: nn.Module,
    student: nn.Module,
    architecture: Mapping[str, Any],
    crops: Sequence[Inputs],
    importance: str = "activation",
    loss: Loss | None = None,
) -> dict[str, Any]:
    """Set the student's weights in place from the teacher's.

    Args:
        teacher: in inference mode, float32.
        student: of family `shrink`, on the teacher's device.
        architecture: the student's.
        crops: normalised input batches [B, C, h, w], or all the tensors of each.
        importance: `activation` or `taylor`, which needs `loss`.
        loss: of the teacher's output for a batch, given its index.

    Returns:
        The report: `importance`, `images`, `layers` (name, kept, of, relative_error on held-out
        positions), `sliced` (name, why), `seconds`.

    Raises:
        KDError: `inherit-family`, `inherit-mismatch`, `inherit-nonfinite`, `trace-failed`.
    """
    if architecture["family"] != "shrink":
        raise KDError(
            "inherit-family",
            f"a student of family {architecture['family']!r} has no teacher channels to inherit",
            where="student.init",
            fix='set student.family = "shrink", or student.init = "random"',
        )
    start = time.perf_counter()
    dropped = architecture.get("dropped", ())
    channels = trace(teacher, tuple(tensor[:1] for tensor in inputs_of(crops[0])))
    # a dropped block no longer reads its group; a dropped convolution stays until channels are
    # chosen: what it makes of its input is what the layers behind it must now find there
    _forget(channels, [name for name in dropped if name not in channels.layers])
    wanted = _wanted(teacher, channels, student, dropped)
    kept = _kept(teacher, channels, wanted, crops, importance, loss)
    _forget(channels, [path for name in dropped for path in members(teacher, name)])
    plans = layer_plans(channels, kept, student)
    teacher, heads = turned(teacher, [*find_heads(channels, kept)], crops)
    with in_inference(student):
        left = slice_weights(teacher, student, plans, kept_parameters(channels, kept))
        errors, why = solve_layers(teacher, student, crops, plans, heads)
    why |= dict.fromkeys(left, "another shape than the teacher's: it keeps its initial values")
    layers = [
        {
            "name": plan.name,
            "kept": len(plan.outputs),
            "of": length(channels.layers[plan.name].outputs),
            "relative_error": errors.get(plan.name),
        }
        for plan in plans
        if not issubclass(channels.layers[plan.name].kind, BATCH_NORMS)
    ]
    return {
        "importance": importance,
        "images": sum(len(inputs_of(batch)[0]) for batch in crops),
        "layers": layers,
        "sliced": [{"name": name, "why": reason} for name, reason in why.items()],
        "seconds": time.perf_counter() - start,
    }


def _forget(channels: Channels, gone: Sequence[str]) -> None:
    """Leave out the layers of modules that the student does not have."""
    for name in [name for name in channels.layers if is_gone(name, gone)]:
        del channels.layers[name]
    for name in [name for name in channels.parameters if is_gone(name, gone)]:
        del channels.parameters[name]


def _wanted(
    teacher: nn.Module, channels: Channels, student: nn.Module, dropped: Sequence[str]
) -> dict[int, int]:
    """The student's width of each group; of one that only something dropped made, its leader's."""
    gone = [path for name in dropped for path in members(teacher, name)]
    left = {name: layer for name, layer in channels.layers.items() if not is_gone(name, gone)}
    found = widths(replace(channels, layers=left), student)
    for root, leader in tied(channels, dropped).items():
        found.setdefault(root, found.get(leader, channels.size[leader]))
    return found


def _kept(
    teacher: nn.Module,
    channels: Channels,
    wanted: Mapping[int, int],
    crops: Sequence[Inputs],
    importance: str,
    loss: Loss | None,
) -> dict[int, Tensor]:
    """Ascending indices of the kept channels of each group that loses some."""
    narrowed = {root: keep for root, keep in wanted.items() if keep < channels.size[root]}
    found = readers(channels, set(narrowed))
    if importance == "taylor":
        assert loss is not None, "first-order importance needs the loss"
        scores = taylor(teacher, crops, found, loss)
        return {
            root: most(
                scores.get(root, torch.zeros(channels.size[root])), keep, channels.multiple[root]
            )
            for root, keep in narrowed.items()
        }
    views = places(teacher, crops, found)
    return {
        root: explaining(views.get(root, ()), channels.size[root], keep, channels.multiple[root])
        for root, keep in narrowed.items()
    }
