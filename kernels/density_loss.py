r"""The terms of density-map regression: to the labels, to the teacher, and counts of blocks.

For student, target and teacher densities S, Y, D [N, C, h, w]:

    hard  = f sum (S - Y)^2
    soft  = f sum (S - D)^2
    count = 1 / blocks * sum_blocks |sum_{cells of the block} (S - Y)|

f is 1 over the number of cells ("mean"), or 1 / N ("paper", as SKT was released). Blocks have
`block` x `block` cells and do not overlap; those at the lower and right edge hold what is there.
"""

from collections.abc import Sequence
from typing import Any, Literal, no_type_check

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from kdcompile.kernels._maps import ceil_div, dense, is_last, offsets, power_of_two
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, jit, tl, use_triton
from kdcompile.kernels._tune import Config, best, shape_class

CONFIGS: Sequence[Config] = (  # CELLS of a map at a time, in whole blocks where they are small
    {"CELLS": 2048, "num_warps": 4, "num_stages": 1},
    {"CELLS": 1024, "num_warps": 4, "num_stages": 1},
    {"CELLS": 4096, "num_warps": 8, "num_stages": 1},
    {"CELLS": 1024, "num_warps": 2, "num_stages": 1},
)
Reduction = Literal["mean", "paper"]


def density_loss(
    student: Tensor,
    target: Tensor,
    teacher: Tensor | None = None,
    *,
    block: int = 8,
    reduction: Reduction = "mean",
    check: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The terms hard, soft and count, float32 scalars.

    Args:
        student: densities [N, C, h, w], C = 1 as a rule.
        target: the labels' densities, the same shape. No gradient flows to it.
        teacher: the teacher's densities, the same shape. No gradient flows to it. Without it
            soft is 0 and has a zero gradient.
        block: side of a block in cells.
        reduction: hard and soft are the mean over cells ("mean"), or the sum over cells averaged
            over the batch ("paper"); count is a mean over blocks either way.
        check: refuse values that are not finite; waits for the device.

    The three maps may differ in type and memory format: under autocast the student is half
    precision beside float32 labels. A block whose counts agree exactly has no gradient from
    count. Deterministic. No cell, no loss: 0.

    Raises:
        ValueError: the maps do not fit each other, or an option is unknown.
    """
    _check(student, target, teacher, block, reduction)
    if check:
        _check_finite(student, target, teacher)
    if student.numel() == 0:
        nothing = student.float().sum()
        return nothing, nothing, nothing
    block = min(block, max(student.shape[2:]))  # one block either way
    maps = [student, target] if teacher is None else [student, target, teacher]
    if not use_triton("density_loss", *maps):
        return density_loss_reference(student, target, teacher, block, reduction)
    maps = [dense(m) for m in maps]
    found: tuple[Tensor, Tensor, Tensor] = _DensityLoss.apply(  # type: ignore[no-untyped-call]
        maps[0], maps[1], maps[2] if teacher is not None else None, block, reduction
    )
    return found


def density_loss_reference(
    student: Tensor, target: Tensor, teacher: Tensor | None, block: int, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain PyTorch; the arguments of `density_loss`."""
    with full_precision(student):
        kind = torch.float64 if student.dtype == torch.float64 else torch.float32
        s, y = student.to(kind), target.detach().to(kind)
        d = s.detach() if teacher is None else teacher.detach().to(kind)
        pooled = avg_pool2d(s - y, block, ceil_mode=True, divisor_override=1)
        cells = s.shape[0] if reduction == "paper" else s.numel()
        soft = (s - d).square().sum() / cells
        return (s - y).square().sum() / cells, soft, pooled.abs().mean()


@jit
@no_type_check
def _place(plane, pixel, C, P, LAST: tl.constexpr):
    """Addresses of pixels of a plane (image and channel in one) in either memory format."""
    if LAST:
        return offsets(plane // C, plane % C, pixel, C, P, True)
    return plane.to(tl.int64) * P + pixel


@jit
@no_type_check
def _cells(index, total, first, C, h, w, BLOCK: tl.constexpr, ROWS: tl.constexpr, B: tl.constexpr):
    """Planes and pixels [ROWS, BLOCKS, B] of rows first, ... of some blocks, and which exist."""
    down, across = tl.cdiv(h, BLOCK), tl.cdiv(w, BLOCK)
    plane, within = index // (down * across), index % (down * across)
    i = first + tl.arange(0, ROWS)[:, None, None]
    j = tl.arange(0, B)[None, None, :]
    row = (within // across)[None, :, None] * BLOCK + i
    column = (within % across)[None, :, None] * BLOCK + j
    inside = (index < total)[None, :, None] & (i < BLOCK) & (j < BLOCK) & (row < h) & (column < w)
    return plane[None, :, None], row.to(tl.int64) * w + column, inside


@jit
@no_type_check
def _density_loss_fwd_kernel(
    student,  # [N, C, h, w] each, in either memory format
    target,
    teacher,  # anything where SOFT is False
    signs,  # [total] int8: sign of each block's difference
    partial,  # [3, programs] float32
    C, h, w, P, total, factor, count_factor,
    LAST_S: tl.constexpr, LAST_Y: tl.constexpr, LAST_D: tl.constexpr, SOFT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    counts = tl.zeros([ROWS, BLOCKS], tl.float32)
    hard = tl.zeros([ROWS, BLOCKS], tl.float32)
    soft = tl.zeros([ROWS, BLOCKS], tl.float32)
    for first in range(0, BLOCK, ROWS):
        plane, pixel, inside = _cells(index, total, first, C, h, w, BLOCK, ROWS, B)
        s = tl.load(student + _place(plane, pixel, C, P, LAST_S), inside, 0.0).to(tl.float32)
        y = tl.load(target + _place(plane, pixel, C, P, LAST_Y), inside, 0.0).to(tl.float32)
        counts += tl.sum(s - y, 2)
        hard += tl.sum((s - y) * (s - y), 2)
        if SOFT:
            d = tl.load(teacher + _place(plane, pixel, C, P, LAST_D), inside, 0.0).to(tl.float32)
            soft += tl.sum((s - d) * (s - d), 2)
    counts = tl.sum(counts, 0)
    sign = (counts > 0).to(tl.int8) - (counts < 0).to(tl.int8)
    tl.store(signs + index, sign, index < total)
    out = partial + tl.program_id(0)
    tl.store(out, tl.sum(tl.sum(hard, 1), 0) * factor)
    tl.store(out + tl.num_programs(0), tl.sum(tl.sum(soft, 1), 0) * factor)
    tl.store(out + 2 * tl.num_programs(0), tl.sum(tl.abs(counts), 0) * count_factor)


@jit
@no_type_check
def _density_loss_bwd_kernel(
    student, target, teacher, signs,
    up_hard, up_soft, up_count,  # float32 scalars
    grad,  # like student
    C, h, w, P, total, factor, count_factor,
    LAST_S: tl.constexpr, LAST_Y: tl.constexpr, LAST_D: tl.constexpr, SOFT: tl.constexpr,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)
    sign = tl.load(signs + index, index < total, 0).to(tl.float32)
    count = (sign * (tl.load(up_count) * count_factor))[None, :, None]
    hard, soft = tl.load(up_hard) * (2 * factor), tl.load(up_soft) * (2 * factor)
    for first in range(0, BLOCK, ROWS):
        plane, pixel, inside = _cells(index, total, first, C, h, w, BLOCK, ROWS, B)
        place = _place(plane, pixel, C, P, LAST_S)
        s = tl.load(student + place, inside, 0.0).to(tl.float32)
        y = tl.load(target + _place(plane, pixel, C, P, LAST_Y), inside, 0.0).to(tl.float32)
        g = (s - y) * hard + count
        if SOFT:
            d = tl.load(teacher + _place(plane, pixel, C, P, LAST_D), inside, 0.0).to(tl.float32)
            g += (s - d) * soft
        tl.store(grad + place, g.to(grad.dtype.element_ty), inside)


def _plan(
    student: Tensor, target: Tensor, teacher: Tensor | None, block: int, reduction: str
) -> tuple[int, tuple[Any, ...], dict[str, Any], tuple[object, ...]]:
    """Blocks in all, the kernels' plain arguments from C on, their constants, the tuning's key."""
    batch, channels, h, w = student.shape
    total = batch * channels * ceil_div(h, block) * ceil_div(w, block)
    cells = batch if reduction == "paper" else student.numel()
    maps = {"LAST_S": student, "LAST_Y": target, "LAST_D": student if teacher is None else teacher}
    constants: dict[str, Any] = {n: channels > 1 and is_last(m) for n, m in maps.items()}
    constants |= {"SOFT": teacher is not None, "BLOCK": block}
    types = [m.dtype for m in maps.values()]
    key = (*types, *shape_class(student.numel(), w), *constants.values())
    return total, (channels, h, w, h * w, total, 1 / cells, 1 / total), constants, key


def _tile(config: Config, block: int) -> dict[str, int]:
    """Sides of a tile: rows of a block, blocks, columns of a block; and the launch's options."""
    columns = power_of_two(block)
    rows = min(columns, max(config["CELLS"] // columns, 1))
    blocks = max(config["CELLS"] // (columns * rows), 1)
    launch = {name: config[name] for name in ("num_warps", "num_stages")}
    return {"B": columns, "ROWS": rows, "BLOCKS": blocks, **launch}


def _forward_fake(
    student: Tensor, target: Tensor, teacher: Tensor | None, block: int, reduction: str
) -> tuple[Tensor, Tensor]:
    total = _plan(student, target, teacher, block, reduction)[0]
    return (
        student.new_empty((3,), dtype=torch.float32),
        student.new_empty((total,), dtype=torch.int8),
    )


@operator(_forward_fake)
def density_loss_forward(
    student: Tensor, target: Tensor, teacher: Tensor | None, block: int, reduction: str
) -> tuple[Tensor, Tensor]:
    """[hard, soft, count], and the sign of each block's difference in counts."""
    total, numbers, constants, key = _plan(student, target, teacher, block, reduction)
    signs = student.new_empty(total, dtype=torch.int8)

    def run(config: Config) -> Tensor:
        tile = _tile(config, block)
        programs = ceil_div(total, tile["BLOCKS"])
        partial = student.new_empty((3, programs), dtype=torch.float32)
        _density_loss_fwd_kernel[(programs,)](
            student, target, student if teacher is None else teacher, signs, partial,
            *numbers, **constants, **tile,
        )  # fmt: skip
        return partial.sum(1)

    return best("density_loss_forward", key, CONFIGS, student.device, run), signs


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student)


@operator(_backward_fake)
def density_loss_backward(
    student: Tensor,
    target: Tensor,
    teacher: Tensor | None,
    signs: Tensor,
    hard: Tensor,
    soft: Tensor,
    count: Tensor,
    block: int,
    reduction: str,
) -> Tensor:
    """The student's gradient, from the upstream gradients of the three terms."""
    total, numbers, constants, key = _plan(student, target, teacher, block, reduction)
    grad = torch.empty_like(student)

    def run(config: Config) -> Tensor:
        tile = _tile(config, block)
        _density_loss_bwd_kernel[(ceil_div(total, tile["BLOCKS"]),)](
            student, target, student if teacher is None else teacher, signs, hard, soft, count,
            grad, *numbers, **constants, **tile,
        )  # fmt: skip
        return grad

    return best("density_loss_backward", key, CONFIGS, student.device, run)


class _DensityLoss(torch.autograd.Function):
    """Keeps the maps and one byte a block; the backward pass reads the maps again."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, target: Tensor, teacher: Tensor | None, *plain: Any
    ) -> tuple[Tensor, ...]:
        terms, signs = density_loss_forward(student, target, teacher, *plain)
        ctx.save_for_backward(student, target, teacher, signs)
        ctx.plain = plain
        return tuple(terms.unbind())

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad = density_loss_backward(*ctx.saved_tensors, *upstream, *ctx.plain)
        return (grad, *[None] * 4)


def _others(target: Tensor, teacher: Tensor | None) -> list[tuple[str, Tensor]]:
    return [("target", target)] + ([] if teacher is None else [("teacher", teacher)])


def _check(
    student: Tensor, target: Tensor, teacher: Tensor | None, block: int, reduction: str
) -> None:
    shape = tuple(student.shape)
    for name, other in _others(target, teacher):
        if other.shape != student.shape or student.dim() != 4:
            wanted = "densities must be [N, C, h, w] and of one shape"
            raise ValueError(f"{wanted}: student {shape}, {name} {tuple(other.shape)}")
        if other.device != student.device:
            where = f"student on {student.device}, {name} on {other.device}"
            raise ValueError(f"densities lie apart: {where}")
        if other.requires_grad:
            raise ValueError(
                f"the {name}'s densities {tuple(other.shape)} require a gradient beside the"
                f" student's {shape}: only the student's may"
            )
    if block < 1:
        raise ValueError(f"block is {block}, it must be 1 or more")
    if reduction not in ("mean", "paper"):
        raise ValueError(f'reduction is {reduction!r}, it must be "mean" or "paper"')


def _check_finite(student: Tensor, target: Tensor, teacher: Tensor | None) -> None:
    bad = [
        f"{name} {int((~torch.isfinite(densities)).sum())} of {densities.numel()}"
        for name, densities in [("student", student), *_others(target, teacher)]
    ]
    if any(" 0 of " not in found for found in bad):
        raise ValueError(f"densities hold values that are not finite: {', '.join(bad)}")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    pointer, number = POINTER[dtype], "*fp32"
    common = {"student": pointer, "target": number, "teacher": pointer, "signs": "*i8"}
    plain = dict.fromkeys(("C", "h", "w", "P", "total"), "i32")
    plain |= dict.fromkeys(("factor", "count_factor"), "fp32")
    forward = common | {"partial": number} | plain
    backward = common | dict.fromkeys(("up_hard", "up_soft", "up_count"), number) | plain
    backward |= {"grad": pointer}
    found = []
    for config in CONFIGS:
        for last, soft, block in ((False, True, 8), (True, False, 8), (False, True, 100)):
            tile = _tile(config, block)
            launch = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
            flags = dict.fromkeys(("LAST_S", "LAST_Y", "LAST_D"), last)
            constants = flags | tile | {"SOFT": soft, "BLOCK": block}
            label = f"{'last' if last else 'first'} block {block} cells {config['CELLS']}"
            quick = config is CONFIGS[0] and not last and block == 8
            found += [
                Compilation(_density_loss_fwd_kernel, forward, constants, launch, label, quick),
                Compilation(_density_loss_bwd_kernel, backward, constants, launch, label, quick),
            ]
    return found


def _case(h: int, w: int, device: torch.device, dtype: torch.dtype, _: torch.memory_format) -> Case:
    student = torch.randn(8, 1, h, w, device=device, dtype=dtype).requires_grad_()
    target = torch.rand(8, 1, h, w, device=device)
    teacher = torch.rand(8, 1, h, w, device=device, dtype=dtype)
    reads = 2 * student.element_size() + target.element_size()
    return Case(
        kernel=lambda: torch.stack(density_loss(student, target, teacher)),
        reference=lambda: torch.stack(density_loss_reference(student, target, teacher, 8, "mean")),
        leaves=[student],
        floor_bytes=student.numel() * (2 * reads + student.element_size()),
    )


KERNEL = Kernel(
    name="density_loss",
    formula="f sum (S - Y)^2, f sum (S - D)^2, mean over blocks of |block sum of (S - Y)|",
    traffic=(
        "forward: the three maps read, one byte a block written; backward: the three maps and"
        " those bytes read, the gradient written"
    ),
    compilations=_compilations,
    settings=[
        Setting("8 x 1 x 2304 x 3072", lambda *where: _case(2304, 3072, *where)),
        Setting("8 x 1 x 72 x 96", lambda *where: _case(72, 96, *where), graph=True),
    ],
)
