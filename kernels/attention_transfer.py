r"""Attention transfer (AT; Zagoruyko & Komodakis, ICLR 2017) on one pair of maps.

For a map F [N, C, P] with P pixels, and S, T for student and teacher:

    e = sum_channels F^2,   q = e / |e|                 |e| over the pixels of an image; 0 / 0 = 0
    code   loss = 1 / (N P) * sum_images |q_S - q_T|^2  (what the authors' code computes)
    paper  loss = 1 / N * sum_images |q_S - q_T|

A mean over the channels gives the same q, so student and teacher may differ in channels. With
D = |q_S - q_T|^2 the derivative of D / 2 by e_S is ((q_S - q_T) - q_S d) / |e_S|, where
d = q_S (q_S - q_T) = D / 2, or D where q_T = 0; so the energies and three numbers an image are all
that the backward pass needs besides the student's map.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcompile.kernels._attention_transfer import (
    attention_transfer_bwd_kernel,
    attention_transfer_finish_kernel,
    attention_transfer_fwd_kernel,
    attention_transfer_gap_kernel,
)
from kdcompile.kernels._maps import ceil_div, check_finite, check_pair, dense
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton
from kdcompile.kernels._tiles import launch, strips, tile_sizes
from kdcompile.kernels._tune import Config, best, shape_class

MODES = ("code", "paper")
GAP = {"PIXELS": 4096, "PARTS": 1024}
SAME = 1e-6  # |q_S - q_T| below which its direction is nothing but rounding
PROGRAMS = 8192  # the forward pass makes up to twice as many for either map
FINISH = {"IMAGES": 64, "BLOCKS": 16}
CONFIGS: Sequence[Config] = (
    {"TILE": 2048, "PIXELS": 256, "CHANNELS": 64, "num_warps": 4, "num_stages": 1},
    {"TILE": 4096, "PIXELS": 512, "CHANNELS": 128, "num_warps": 8, "num_stages": 1},
    {"TILE": 1024, "PIXELS": 128, "CHANNELS": 32, "num_warps": 4, "num_stages": 1},
    {"TILE": 4096, "PIXELS": 128, "CHANNELS": 256, "num_warps": 8, "num_stages": 1},
    {"TILE": 2048, "PIXELS": 1024, "CHANNELS": 64, "num_warps": 4, "num_stages": 1},
    {"TILE": 1024, "PIXELS": 128, "CHANNELS": 32, "num_warps": 2, "num_stages": 1},
)


def attention_transfer(
    student: Tensor, teacher: Tensor, mode: str = "code", *, check: bool = False
) -> Tensor:
    """The attention transfer loss, a float32 scalar.

    Args:
        student: map [N, C, H, W].
        teacher: map [N, C', H, W] of any number of channels. No gradient flows to it.
        mode: "code" or "paper", see above.
        check: refuse values that are not finite; waits for the device.

    A map that is 0 has q = 0, and no gradient. The norm of "paper" has no derivative where the two
    q of an image are equal: up to a distance of 1e-6, the rounding of float32, the gradient is 0.
    Sums of F^4 over an image are kept in float32, which holds for any values of float16.
    Deterministic. An empty batch gives 0.

    Raises:
        ValueError: student and teacher do not fit each other, or the mode is neither.
    """
    _check(student, teacher, mode)
    if check:
        check_finite(student, teacher)
    if student.numel() == 0:
        return student.float().sum()
    if not use_triton("attention_transfer", student, teacher):
        return attention_transfer_reference(student, teacher, mode)
    loss: Tensor = _AttentionTransfer.apply(dense(student), dense(teacher), mode)  # type: ignore[no-untyped-call]
    return loss


def attention_transfer_reference(student: Tensor, teacher: Tensor, mode: str) -> Tensor:
    """Plain PyTorch; the arguments of `attention_transfer`."""
    with full_precision(student):
        gap = _attention(student) - _attention(teacher.detach())
        if mode == "code":
            return gap.square().mean()
        distance = torch.linalg.vector_norm(gap, dim=1)
        loss: Tensor = torch.where(distance > SAME, distance, distance.detach()).mean()
        return loss


def _attention(maps: Tensor) -> Tensor:
    wide = maps if maps.dtype == torch.float64 else maps.float()
    energy = wide.square().sum(1).flatten(1)
    norm: Tensor = torch.linalg.vector_norm(energy, dim=1, keepdim=True)
    return energy / norm.masked_fill(norm == 0, 1)


def _last(maps: Tensor) -> bool:
    return not maps.is_contiguous()


def _sizes(config: Config, maps: Tensor, pixels: int) -> tuple[int, int]:
    sizes = tile_sizes(config, maps.shape[1], pixels, _last(maps))
    return sizes["CHANNELS"], sizes["PIXELS"]


def _forward_fake(student: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    images, pixels = student.shape[0], student.shape[2] * student.shape[3]
    return (
        student.new_empty((), dtype=torch.float32),
        student.new_empty((2, images, pixels), dtype=torch.float32),
        student.new_empty((3, images), dtype=torch.float32),
    )


@operator(_forward_fake)
def attention_transfer_forward(
    student: Tensor, teacher: Tensor, mode: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, the energies [2, N, P], and |e_S|, |e_T| and D of each image."""
    images, pixels = student.shape[0], student[0, 0].numel()
    own, theirs = student.shape[1], teacher.shape[1]
    paper, size = mode == "paper", images * pixels
    energy = student.new_empty((2, images, pixels), dtype=torch.float32)
    stats = energy.new_empty((3, images))

    def run(config: Config) -> Tensor:
        tiles = [_sizes(config, m, pixels) for m in (student, teacher)]
        cuts = [strips(ceil_div(pixels, tile[1]), images, PROGRAMS) for tile in tiles]
        steps, parts = zip(*cuts, strict=True)
        programs, blocks = images * parts[0], ceil_div(pixels, GAP["PIXELS"])
        squares = energy.new_empty(images * sum(parts))
        partial, loss = energy.new_empty(images * blocks), energy.new_empty(())
        attention_transfer_fwd_kernel[(len(squares),)](
            student, teacher, energy, squares, own, theirs, pixels, *steps,
            programs, size,
            _last(student), *tiles[0], _last(teacher), *tiles[1], **launch(config)
        )  # fmt: skip
        attention_transfer_gap_kernel[(images * blocks,)](
            energy, squares, stats, partial, images, pixels, *parts, size, **GAP, num_warps=8
        )
        attention_transfer_finish_kernel[(1,)](
            partial, stats, loss, images, blocks, 1 / images if paper else 1 / size,
            paper, **FINISH, num_warps=4
        )  # fmt: skip
        return loss

    key = (student.dtype, *shape_class(images, own, theirs, pixels), _last(student), _last(teacher))
    return best("attention_transfer_forward", key, CONFIGS, student.device, run), energy, stats


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student)


@operator(_backward_fake)
def attention_transfer_backward(
    student: Tensor, energy: Tensor, stats: Tensor, upstream: Tensor, mode: str
) -> Tensor:
    """The gradient of the student's map, in its type and memory format."""
    images, channels, pixels = student.shape[0], student.shape[1], student[0, 0].numel()
    paper, size, last = mode == "paper", images * pixels, _last(student)
    factor = 2 / images if paper else 4 / size  # dF = 2 F de
    grad = torch.empty_like(student)

    def run(config: Config) -> Tensor:
        tile = _sizes(config, student, pixels)
        programs = images * ceil_div(channels, tile[0]) * ceil_div(pixels, tile[1])
        attention_transfer_bwd_kernel[(programs,)](
            student, energy, stats, upstream, grad, channels, pixels, images, size, factor,
            paper, SAME, last, *tile, **launch(config)
        )  # fmt: skip
        return grad

    key = (student.dtype, *shape_class(images, channels, pixels), last)
    return best("attention_transfer_backward", key, CONFIGS, student.device, run)


class _AttentionTransfer(torch.autograd.Function):
    """Keeps the student's map, the energies and 3 numbers an image."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, mode: str) -> Tensor:
        loss, energy, stats = attention_transfer_forward(student, teacher, mode)
        ctx.save_for_backward(student, energy, stats)
        ctx.mode = mode
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, energy, stats = ctx.saved_tensors
        outer = upstream[0].contiguous()
        return attention_transfer_backward(student, energy, stats, outer, ctx.mode), None, None


def _check(student: Tensor, teacher: Tensor, mode: str) -> None:
    own, theirs = tuple(student.shape), tuple(teacher.shape)
    if len(own) != 4 or len(theirs) != 4 or (own[0], *own[2:]) != (theirs[0], *theirs[2:]):
        raise ValueError(
            f"maps must be [N, C, H, W] and may differ in C alone: student {own}, teacher {theirs}"
        )
    check_pair(student, teacher)
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}, it must be one of {', '.join(MODES)}")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    pointer, number = POINTER[dtype], "*fp32"
    counts = ("programs", "blocks", "size", "steps_s", "steps_t")
    sizes = dict.fromkeys((*counts, "C", "C_S", "C_T", "P", "N", "parts_s", "parts_t"), "i32")
    types = sizes | {"factor": "fp32"} | dict.fromkeys(
        ("energy", "squares", "stats", "partial", "loss", "upstream"), number
    ) | dict.fromkeys(("student", "teacher", "grad"), pointer)  # fmt: skip
    found = []
    for config in CONFIGS:
        for last in (False, True):
            one = {"LAST": last, **tile_sizes(config, 256, 1 << 20, last)}
            both = {f"{name}_{side}": value for side in "ST" for name, value in one.items()}
            label = "channels_last" if last else "contiguous"
            quick = config is CONFIGS[0] and not last
            for kernel, constants in (
                (attention_transfer_fwd_kernel, both),
                (attention_transfer_bwd_kernel, one | {"PAPER": quick, "SAME": SAME}),
            ):
                found.append(Compilation(kernel, types, constants, launch(config), label, quick))
    if dtype == torch.float32:
        finish = {**FINISH, "PAPER": True}
        found += [
            Compilation(attention_transfer_gap_kernel, types, GAP, {"num_warps": 8}, "", True),
            Compilation(
                attention_transfer_finish_kernel, types, finish, {"num_warps": 4}, "", True
            ),
        ]
    return found


def _case(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    student, teacher = (
        torch.randn(8, channels, 288, 384, device=device).to(dtype).contiguous(memory_format=layout)
        for channels in (32, 128)
    )
    student.requires_grad_()
    return Case(
        kernel=lambda: attention_transfer(student, teacher),
        reference=lambda: attention_transfer_reference(student, teacher, "code"),
        leaves=[student],
        floor_bytes=(3 * student.numel() + teacher.numel()) * student.element_size(),
    )


KERNEL = Kernel(
    name="attention_transfer",
    formula="mean (q_S - q_T)^2, or the mean over images of |q_S - q_T|; q = e / |e|,"
    " e = sum_channels F^2",
    traffic="forward: both maps read, one float32 a pixel of each written and read; backward: the"
    " student's map and both energies read, the gradient written",
    compilations=_compilations,
    settings=[
        Setting(
            "8 x 32 and 128 x 288 x 384",
            _case,
            layouts=(torch.contiguous_format, torch.channels_last),
        )
    ],
)
