"""Solve the student's layers one by one on crops, each from what those before it give."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.distill.inherit.batch_norm import (
    BatchNorm,
    Moments,
    absorbs,
    correct,
    gate_through,
)
from kdcompile.distill.inherit.layer_norm import norm_axis, rescale
from kdcompile.distill.inherit.plan import LayerPlan
from kdcompile.distill.inherit.rows import (
    grouped_weight,
    groups,
    input_rows,
    is_last,
    output_rows,
    sample,
    set_weight,
)
from kdcompile.distill.inherit.solve import Gate, Solution, fit
from kdcompile.models.examples import Inputs, inputs_of
from kdcompile.models.resize import (
    BATCH_NORMS,
    LAST_NORMS,
    WHOLE,
    changes_forward,
    module_widths,
)

if TYPE_CHECKING:
    from kdcompile.distill.inherit.attention import Heads

ROWS_PER_UNKNOWN, FEWEST_ROWS, MOST_ROWS = 32, 8192, 32768  # of a layer's linear system
MOST_VALUES = 2**26  # in it, 256 MiB
UNSOLVED = (nn.GroupNorm, *WHOLE)
MOST_UNKNOWNS = 8192  # of an output; their second moments are 512 MiB in float64


class _ReachedError(Exception):
    """The layer that was waited for is about to run."""


@dataclass
class Target:
    """What the teacher makes at the sampled positions: picks, output space and rows by batch."""

    picks: list[Tensor] = field(default_factory=list)
    spaces: list[torch.Size] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)


def teacher_targets(
    teacher: nn.Module, crops: Sequence[Inputs], plans: Sequence[LayerPlan]
) -> tuple[dict[str, Target], dict[str, Moments]]:
    """One pass of the teacher: outputs at sampled positions, and inputs' moments of batch norms."""
    targets: dict[str, Target] = {}
    moments: dict[str, Moments] = {}
    images = sum(len(inputs_of(batch)[0]) for batch in crops)

    def output(place: int, plan: LayerPlan, module: nn.Module, _: Any, y: Tensor) -> None:
        target = targets.setdefault(plan.name, Target())
        linear = is_last(module)
        total = y.shape[:-1].numel() if linear else len(y) * y.shape[2:].numel()
        count = max(1, _rows(module, len(plan.inputs)) // images) * len(y)
        picks = sample(total, count, 100003 * place + len(target.picks)).to(y.device)
        target.picks.append(picks)
        target.spaces.append(y.shape[2:])
        target.rows.append(output_rows(y, picks, linear)[:, plan.outputs.to(y.device)])

    def normalised(plan: LayerPlan, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        kept = inputs[0].index_select(1, plan.outputs.to(inputs[0].device))
        moments.setdefault(plan.name, Moments()).add(kept)

    with ExitStack() as hooks, torch.no_grad():
        for place, plan in enumerate(plans):
            module = teacher.get_submodule(plan.name)
            if isinstance(module, BATCH_NORMS):
                handle = module.register_forward_pre_hook(partial(normalised, plan))
            elif isinstance(module, UNSOLVED) or _does_more(module):
                continue
            else:
                handle = module.register_forward_hook(partial(output, place, plan))
            hooks.enter_context(handle)
        for batch in crops:
            teacher(*inputs_of(batch))
    return targets, moments


def _rows(module: nn.Module, inputs: int) -> int:
    """How many positions a layer that keeps so many inputs is solved at."""
    if isinstance(module, LAST_NORMS):
        return FEWEST_ROWS
    values = inputs * grouped_weight(module).shape[-1]  # of a row
    wanted = max(FEWEST_ROWS, ROWS_PER_UNKNOWN * values // groups(module))
    return min(wanted, MOST_ROWS, MOST_VALUES // values)


def solve_layers(
    teacher: nn.Module,
    student: nn.Module,
    crops: Sequence[Inputs],
    plans: Sequence[LayerPlan],
    heads: Sequence["Heads"] = (),
) -> tuple[dict[str, float], dict[str, str]]:
    """Solve the student's layers from first to last, each from what the student gives it.

    Args:
        teacher: in inference mode.
        student: in inference mode, its weights sliced.
        crops: input batches [B, C, h, w], or all the tensors of each.
        plans: in order of execution.
        heads: of attention, whose queries are to be scaled where they are smaller.

    Returns:
        The relative error of each solved layer on held-out rows, and why others were only sliced.

    Raises:
        KDError: `inherit-nonfinite`.
    """
    targets, moments = teacher_targets(teacher, crops, plans)
    shifts: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    only_sliced: dict[str, str] = {}
    readers = {own.reader: own for own in heads}
    for plan in plans:
        if plan.name in readers:
            readers[plan.name].rescale(teacher, student, crops)
        module, theirs = (net.get_submodule(plan.name) for net in (student, teacher))
        if isinstance(module, UNSOLVED):
            if module_widths(module) != module_widths(theirs):
                only_sliced[plan.name] = f"a {type(module).__name__} is not one linear system"
            continue
        why = _why_only_sliced(module, plan, plan.name in targets or plan.name in moments)
        if why is not None:
            only_sliced[plan.name] = why
        elif isinstance(module, BATCH_NORMS):
            if module.running_var is not None:
                own = Moments()
                for batch in crops:
                    own.add(input_at(student, plan.name, batch))
                correct(module, moments[plan.name], own, shifts.get(plan.name))
        elif isinstance(module, LAST_NORMS):
            rows = _rows_at(student, crops, plan, targets[plan.name])
            errors[plan.name] = rescale(module, *rows)
        else:
            if plan.batch_norm is not None and plan.batch_norm not in moments:
                # it is used without being called, so nothing will correct it
                plan = replace(plan, batch_norm=None, rectified=False)
            behind = teacher.get_submodule(plan.batch_norm) if plan.batch_norm else None
            assert behind is None or isinstance(behind, BATCH_NORMS)
            solution, errors[plan.name] = _solve(student, crops, plan, targets[plan.name], behind)
            if behind is not None and module.bias is None:
                shifts[str(plan.batch_norm)] = solution.bias.flatten()
    return errors, only_sliced


def _does_more(module: nn.Module) -> bool:
    """Whether a layer may compute more than its weights say; those of batch norms are not asked."""
    if isinstance(module, LAST_NORMS):
        return norm_axis(module) is None
    return not isinstance(module, BATCH_NORMS) and changes_forward(module)


def _why_only_sliced(module: nn.Module, plan: LayerPlan, called: bool) -> str | None:
    if plan.runs > 1:
        return f"it runs {plan.runs} times"
    if _does_more(module):
        return f"a {type(module).__name__} may do more than its weights say"
    if not called:
        return "its parameters are used without calling it"
    if not isinstance(module, BATCH_NORMS):
        if isinstance(module, LAST_NORMS):
            return None
        unknowns = grouped_weight(module)[0, 0].numel()
        if unknowns > MOST_UNKNOWNS:
            return f"an output reads {unknowns} values, more than {MOST_UNKNOWNS}"
    return None


def _solve(
    student: nn.Module,
    crops: Sequence[Inputs],
    plan: LayerPlan,
    target: Target,
    behind: BatchNorm | None,
) -> tuple[Solution, float]:
    """Set one layer's weights.

    Args:
        student: everything before the layer is set.
        crops: input batches.
        plan: the layer's.
        target: the teacher's outputs.
        behind: the teacher's batch norm that alone reads the layer.

    Returns:
        The solution, with the bias that a layer without one would have, and its relative error.
    """
    module = student.get_submodule(plan.name)
    x, y = _rows_at(student, crops, plan, target)
    shiftable = behind is not None and absorbs(behind)
    gate = None
    if plan.rectified and behind is None:
        gate = Gate(y.new_ones(len(y), 1, y.shape[2]), y.new_zeros(len(y), 1, y.shape[2]))
    elif plan.rectified and behind is not None and shiftable:
        gate = gate_through(behind, plan.outputs.to(y.device).reshape(len(y), 1, -1))
    weight = grouped_weight(module)
    prior = weight.flatten(2).transpose(1, 2)
    solution, error = fit(x, y, prior, module.bias is not None or shiftable, gate)
    set_weight(module, solution.weight.float().transpose(1, 2).reshape(weight.shape))
    if isinstance(module.bias, Tensor):
        module.bias.data.copy_(solution.bias.flatten())
    return solution, error


def _rows_at(
    student: nn.Module, crops: Sequence[Inputs], plan: LayerPlan, target: Target
) -> tuple[Tensor, Tensor]:
    """The student's inputs [G, n, I/G * K] of a layer and the teacher's outputs [G, n, O/G]."""
    module = student.get_submodule(plan.name)
    inputs = (input_at(student, plan.name, batch) for batch in crops)
    parts = zip(inputs, target.picks, target.spaces, strict=True)
    x = torch.cat([input_rows(module, *part) for part in parts], 1)
    y = torch.cat(target.rows).reshape(x.shape[1], len(x), -1).transpose(0, 1)
    if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
        raise nonfinite(plan.name)
    return x, y


def nonfinite(where: str) -> KDError:
    """The error for activations that are not numbers."""
    return KDError(
        "inherit-nonfinite",
        "activations are not finite on the crops",
        where=where,
        fix='check data.mean and data.std, or set student.init = "random"',
    )


def input_at(student: nn.Module, name: str, batch: Inputs) -> Tensor:
    """What reaches a layer for a batch; nothing behind it is run."""
    found: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0])
        raise _ReachedError

    hook = student.get_submodule(name).register_forward_pre_hook(stop)
    with hook, torch.no_grad(), suppress(_ReachedError):
        student(*inputs_of(batch))
    return found[0]
