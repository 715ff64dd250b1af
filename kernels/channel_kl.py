r"""Channel-wise distillation for dense prediction (Shu et al., ICCV 2021).

For image n and channel c of a student map s and a teacher map t, over the P pixels:

    p = softmax(s / T),  q = softmax(t / T)
    KL = sum_pixels q (log q - log p)
    loss = T^2 / (N C) * sum_{n,c} KL

A row (n, c) is as long as the map, so it is cut into strips: the forward pass makes online-softmax
statistics of each strip, a small kernel merges them into the row's log-sum-exp and KL. Exponents
are kept in powers of two: k = log2(e) / T replaces 1 / T, and ln 2 goes into the last factor.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcompile.kernels._channel_kl import (
    channel_kl_bwd_kernel,
    channel_kl_fwd_kernel,
    channel_kl_merge_kernel,
)
from kdcompile.kernels._maps import (
    ceil_div,
    check_finite,
    check_shapes,
    dense,
)
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton
from kdcompile.kernels._tiles import launch, strips, tile_sizes
from kdcompile.kernels._tune import Config, best, shape_class

MERGE = {"ROWS": 2, "STRIPS": 256}
CONFIGS: Sequence[Config] = (
    {"TILE": 1024, "CHANNELS": 64, "PROGRAMS": 8192, "num_warps": 4, "num_stages": 1},
    {"TILE": 2048, "CHANNELS": 64, "PROGRAMS": 4096, "num_warps": 8, "num_stages": 1},
    {"TILE": 512, "CHANNELS": 64, "PROGRAMS": 8192, "num_warps": 4, "num_stages": 1},
    {"TILE": 1024, "CHANNELS": 32, "PROGRAMS": 16384, "num_warps": 4, "num_stages": 1},
    {"TILE": 2048, "CHANNELS": 128, "PROGRAMS": 8192, "num_warps": 8, "num_stages": 1},
    {"TILE": 256, "CHANNELS": 32, "PROGRAMS": 16384, "num_warps": 2, "num_stages": 1},
)


def channel_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, *, check: bool = False
) -> Tensor:
    """The channel-wise KL loss with the factor T^2, a float32 scalar.

    Args:
        student: logits or features [N, C, H, W].
        teacher: the same shape. No gradient flows to it.
        temperature: T > 0.
        check: refuse values that are not finite; waits for the device.

    A pixel of -inf has probability 0, and a channel that is -inf everywhere, on either side, takes
    no part: it adds 0 and gets no gradient. Deterministic. An empty batch gives 0.

    Raises:
        ValueError: student and teacher do not fit each other, or T is not above 0.
    """
    _check(student, teacher, temperature)
    if check:
        check_finite(student, teacher)
    if student.numel() == 0:
        return student.float().sum()
    if not use_triton("channel_kl", student, teacher):
        return channel_kl_reference(student, teacher, temperature)
    loss: Tensor = _ChannelKl.apply(dense(student), dense(teacher), temperature)  # type: ignore[no-untyped-call]
    return loss


def channel_kl_reference(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Plain PyTorch; the arguments of `channel_kl`."""
    with full_precision(student):
        s, t = _rows(student) / temperature, _rows(teacher.detach()) / temperature
        empty = s.isneginf().all(1, True) | t.isneginf().all(1, True)
        p, q = (x.masked_fill(empty, 0).log_softmax(1) for x in (s, t))
        used = q.exp() > 0  # 0 log 0 = 0, and its gradient too
        gap = q.masked_fill(~used, 0) - p.masked_fill(~used, 0)
        return temperature**2 * (q.exp() * gap).sum(1).mean()


def _rows(maps: Tensor) -> Tensor:
    wide = maps if maps.dtype == torch.float64 else maps.float()
    return wide.flatten(2).flatten(0, 1)


def _walk(student: Tensor, teacher: Tensor) -> tuple[int, int, int, dict[str, Any]]:
    """(images, channels, pixels) and the formats; contiguous maps are one image of all rows."""
    last = {"LAST_S": not student.is_contiguous(), "LAST_T": not teacher.is_contiguous()}
    n, c, pixels = student.shape[0], student.shape[1], student[0, 0].numel()
    return (n, c, pixels, last) if any(last.values()) else (1, n * c, pixels, last)


def _twice(config: Config) -> Config:
    """For the backward pass, which needs no registers for statistics."""
    return {**config, "TILE": 2 * config["TILE"]}


def _forward_fake(student: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = student.shape[0] * student.shape[1]
    return (
        student.new_empty((), dtype=torch.float32),
        student.new_empty((2, rows), dtype=torch.float32),
    )


@operator(_forward_fake)
def channel_kl_forward(
    student: Tensor, teacher: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """The loss, and [2, N * C]: log-sum-exp of s / T and t / T of each row, in powers of two."""
    images, channels, pixels, last = _walk(student, teacher)
    rows = images * channels
    scale, factor = 1 / (temperature * math.log(2)), temperature**2 * math.log(2) / rows
    lse = student.new_empty((2, rows), dtype=torch.float32)

    def run(config: Config) -> Tensor:
        tile = tile_sizes(config, channels, ceil_div(pixels, 4), any(last.values()))
        blocks, short = images * ceil_div(channels, tile["CHANNELS"]), 4 * tile["PIXELS"]
        steps, count = strips(ceil_div(pixels, short), blocks, config["PROGRAMS"])
        merges = ceil_div(rows, MERGE["ROWS"])
        partial = lse.new_empty(blocks if count == 1 else merges)
        stats = lse if count == 1 else lse.new_empty((5, rows, count))
        channel_kl_fwd_kernel[(blocks * count,)](
            student, teacher, stats, lse, partial, channels, pixels, scale, factor, rows, count,
            steps, **last, ONE=count == 1, **tile, **launch(config)
        )  # fmt: skip
        if count > 1:
            channel_kl_merge_kernel[(merges,)](
                stats, lse, partial, factor, rows, count, **MERGE, num_warps=4
            )
        return partial.sum()

    key = (student.dtype, *shape_class(images, channels, pixels), *last.values())
    return best("channel_kl_forward", key, CONFIGS, student.device, run), lse


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student)


@operator(_backward_fake)
def channel_kl_backward(
    student: Tensor, teacher: Tensor, lse: Tensor, upstream: Tensor, temperature: float
) -> Tensor:
    """The gradient of the student's map, in its type and memory format."""
    images, channels, pixels, last = _walk(student, teacher)
    rows = images * channels
    scale, factor = 1 / (temperature * math.log(2)), temperature / rows
    grad = torch.empty_like(student)

    def run(config: Config) -> Tensor:
        tile = tile_sizes(_twice(config), channels, pixels, any(last.values()))
        count = ceil_div(pixels, tile["PIXELS"])
        programs = images * ceil_div(channels, tile["CHANNELS"]) * count
        channel_kl_bwd_kernel[(programs,)](
            student, teacher, lse, upstream, grad, channels, pixels, scale, factor, rows, count,
            **last, **tile, **launch(config)
        )  # fmt: skip
        return grad

    key = (student.dtype, *shape_class(images, channels, pixels), *last.values())
    return best("channel_kl_backward", key, CONFIGS, student.device, run)


class _ChannelKl(torch.autograd.Function):
    """Keeps the maps and 2 numbers a channel; the backward pass reads the maps again."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        loss, lse = channel_kl_forward(student, teacher, temperature)
        ctx.save_for_backward(student, teacher, lse)
        ctx.temperature = temperature
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, lse = ctx.saved_tensors
        grad = channel_kl_backward(student, teacher, lse, upstream[0].contiguous(), ctx.temperature)
        return grad, None, None


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    check_shapes(student, teacher)
    if student.dim() != 4:
        shape = tuple(student.shape)
        raise ValueError(f"maps must be [N, C, H, W]: student {shape}, teacher {shape}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, it must be above 0")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    pointer, number = POINTER[dtype], "*fp32"
    maps = {"student": pointer, "teacher": pointer, "lse": number}
    plain = dict.fromkeys(("C", "P", "rows", "strips", "steps"), "i32") | {
        "scale": "fp32", "factor": "fp32"
    }  # fmt: skip
    found = []
    for config in CONFIGS:
        for last, one in ((False, False), (False, True), (True, False)):
            formats = {"LAST_S": last, "LAST_T": last}
            short = tile_sizes(config, 64, 1 << 20, last)
            wide = tile_sizes(_twice(config), 64, 1 << 20, last)
            forward = maps | {"stats": number, "partial": number} | plain
            backward = maps | {"upstream": number, "grad": pointer} | plain
            label = f"{'channels_last' if last else 'contiguous'}{' one strip' if one else ''}"
            quick = config is CONFIGS[0] and not last and not one
            constants = formats | {"ONE": one} | short
            found.append(
                Compilation(channel_kl_fwd_kernel, forward, constants, launch(config), label, quick)
            )
            if not one:
                constants = formats | wide
                found.append(
                    Compilation(
                        channel_kl_bwd_kernel, backward, constants, launch(config), label, quick
                    )
                )
    if dtype == torch.float32:
        types = {"stats": number, "lse": number, "partial": number} | plain
        found.append(
            Compilation(channel_kl_merge_kernel, types, MERGE, {"num_warps": 4}, quick=True)
        )
    return found


def _case(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    shape = (8, 64, 288, 384)
    student, teacher = (
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)
        for _ in range(2)
    )
    student.requires_grad_()
    return Case(
        kernel=lambda: channel_kl(student, teacher, 4.0),
        reference=lambda: channel_kl_reference(student, teacher, 4.0),
        leaves=[student],
        floor_bytes=5 * student.numel() * student.element_size(),
    )


KERNEL = Kernel(
    name="channel_kl",
    formula="T^2 / (N C) * sum_{n,c} KL(softmax_pixels(t / T) || softmax_pixels(s / T))",
    traffic="forward: both maps read; backward: both read again, the gradient written",
    compilations=_compilations,
    settings=[
        Setting("8 x 64 x 288 x 384", _case, layouts=(torch.contiguous_format, torch.channels_last))
    ],
)
