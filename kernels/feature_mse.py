r"""Masked hint loss (FitNets; Romero et al., ICLR 2015), optionally on normalised features.

For a student map s and a teacher map t of C channels, and a weight m of each pixel (1 by default):

    loss = sum_pixels m sum_channels (s - t)^2 / (C sum_pixels m)          0 where sum m = 0

With `normalize` every pixel's channel vector is divided by its length first, s / |s|, where 0 / 0
is 0, and this is differentiated. The squared distance of two directions is 2 - 2 cos, and its
gradient by s is 2 (a s - b t), a = cos / |s|^2 and b = 1 / (|s| |t|): two numbers a pixel.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdcompile.kernels._feature_mse import (
    feature_mse_bwd_kernel,
    feature_mse_finish_kernel,
    feature_mse_fwd_kernel,
    feature_mse_normalized_fwd_kernel,
)
from kdcompile.kernels._maps import ceil_div, check_finite, check_shapes, dense, is_last, walk
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton
from kdcompile.kernels._tiles import launch, strips, tile_sizes
from kdcompile.kernels._tune import Config, best, shape_class

LONG = 1 << 30  # pixels in a row stay below this, so that they count in 32 bits
FINISH = {"SIZE": 8192}
PROGRAMS = 8192  # the forward pass makes up to twice as many
CONFIGS: Sequence[Config] = (
    {"TILE": 2048, "PIXELS": 256, "CHANNELS": 64, "num_warps": 4, "num_stages": 1},
    {"TILE": 2048, "PIXELS": 512, "CHANNELS": 128, "num_warps": 8, "num_stages": 1},
    {"TILE": 2048, "PIXELS": 1024, "CHANNELS": 32, "num_warps": 8, "num_stages": 1},
    {"TILE": 1024, "PIXELS": 128, "CHANNELS": 64, "num_warps": 4, "num_stages": 1},
    {"TILE": 512, "PIXELS": 128, "CHANNELS": 32, "num_warps": 2, "num_stages": 1},
)


def feature_mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    normalize: bool = False,
    check: bool = False,
) -> Tensor:
    """The mean squared difference of two maps, a float32 scalar.

    Args:
        student: map [N, C, H, W].
        teacher: the same shape. No gradient flows to it.
        mask: weight of each pixel, [N, 1, H, W] or [N, H, W], bool or floating point. A pixel of
            weight 0 takes no part whatever the maps hold there. No gradient flows to it.
        normalize: divide each pixel's channel vector by its length; a vector of 0 stays 0 and gets
            no gradient.
        check: refuse values that are not finite; waits for the device.

    The loss of normalised maps is exact to about 1e-7 / C absolutely, its gradient relatively.
    Deterministic. An empty batch gives 0.

    Raises:
        ValueError: student, teacher and mask do not fit each other.
    """
    _check(student, teacher, mask)
    if check:
        check_finite(student, teacher)
    if student.numel() == 0:
        return student.float().sum()
    if not use_triton("feature_mse", student, teacher):
        return feature_mse_reference(student, teacher, mask, normalize)
    weight = None if mask is None else _weights(mask)
    loss: Tensor = _FeatureMse.apply(dense(student), dense(teacher), weight, normalize)  # type: ignore[no-untyped-call]
    return loss


def feature_mse_reference(
    student: Tensor, teacher: Tensor, mask: Tensor | None, normalize: bool
) -> Tensor:
    """Plain PyTorch; the arguments of `feature_mse`."""
    with full_precision(student):
        s, t = (x if x.dtype == torch.float64 else x.float() for x in (student, teacher.detach()))
        m = s.new_ones(()) if mask is None else mask.detach().to(s.dtype)
        m = m.reshape(-1, 1, *s.shape[2:]) if m.dim() else m.expand(s.shape[0], 1, *s.shape[2:])
        s, t = s.masked_fill(m == 0, 0), t.masked_fill(m == 0, 0)
        if normalize:
            s, t = _direction(s), _direction(t)
        divisor = s.shape[1] * m.sum()
        return (m * (s - t).square()).sum() / torch.where(divisor == 0, 1, divisor)


def _direction(maps: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    return torch.where(length > 0, maps / length.masked_fill(length == 0, 1), 0)


def _weights(mask: Tensor) -> Tensor:
    """The mask as [N * P] in a type that the kernels read."""
    flat = mask.detach().reshape(-1).contiguous()
    if flat.dtype == torch.bool:
        return flat.view(torch.uint8)
    return flat.float() if flat.dtype == torch.float64 else flat


def _walk(
    student: Tensor, teacher: Tensor, plain: bool
) -> tuple[int, int, int, dict[str, bool], bool]:
    """(images, channels, pixels), the formats, and whether memory is walked as one flat row."""
    if plain and student.stride() == teacher.stride() and student.numel() < LONG:
        return 1, 1, student.numel(), {"LAST_S": False, "LAST_T": False}, True
    formats = {"LAST_S": is_last(student), "LAST_T": is_last(teacher)}
    images, pixels = walk(student, teacher)
    if pixels >= LONG:
        images, pixels = student.shape[0], student[0, 0].numel()
    return images, student.shape[1], pixels, formats, False


def _sizes(config: Config, channels: int, pixels: int, last: bool, flat: bool) -> dict[str, int]:
    own = {**config, "PIXELS": config["TILE"]} if flat else config
    return tile_sizes(own, channels, pixels, last)


def _forward_fake(
    student: Tensor, teacher: Tensor, mask: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    size = student.numel() // student.shape[1] if normalize else 0
    return (
        student.new_empty((), dtype=torch.float32),
        student.new_empty((), dtype=torch.float32),
        student.new_empty((2, size), dtype=torch.float32),
    )


@operator(_forward_fake)
def feature_mse_forward(
    student: Tensor, teacher: Tensor, mask: Tensor | None, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, one over its divisor, and [2, N * P] of a m and b m if normalised."""
    masked = mask is not None
    images, channels, pixels, last, flat = _walk(student, teacher, not masked and not normalize)
    size = images * pixels
    loss, inverse = (student.new_empty((), dtype=torch.float32) for _ in range(2))
    stats = loss.new_empty((2, size if normalize else 0))
    weight = loss if mask is None else mask

    def run(config: Config) -> Tensor:
        tile = _sizes(config, channels, pixels, any(last.values()), flat)
        groups = 1 if normalize else ceil_div(channels, tile["CHANNELS"])
        steps, count = strips(ceil_div(pixels, tile["PIXELS"]), images * groups, PROGRAMS)
        programs = images * groups * count
        sums = loss.new_empty((2 if masked else 1, programs))
        options = {"MASKED": masked, **last, **tile, **launch(config)}
        if normalize:
            feature_mse_normalized_fwd_kernel[(programs,)](
                student, teacher, weight, sums, stats, channels, pixels, steps, programs,
                size, **options
            )  # fmt: skip
        else:
            feature_mse_fwd_kernel[(programs,)](
                student, teacher, weight, sums, channels, pixels, steps, programs, **options
            )
        feature_mse_finish_kernel[(1,)](
            sums, loss, inverse, programs, student.shape[1], 1 / student.numel(), masked,
            **FINISH, num_warps=16
        )  # fmt: skip
        return loss

    key = _key(student, (images, channels, pixels), last, masked, normalize)
    return best("feature_mse_forward", key, CONFIGS, student.device, run), inverse, stats


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student)


@operator(_backward_fake)
def feature_mse_backward(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    inverse: Tensor,
    stats: Tensor,
    upstream: Tensor,
    normalize: bool,
) -> Tensor:
    """The gradient of the student's map, in its type and memory format."""
    masked = mask is not None
    images, channels, pixels, last, flat = _walk(student, teacher, not masked and not normalize)
    weights = stats if normalize or mask is None else mask
    grad = torch.empty_like(student)

    def run(config: Config) -> Tensor:
        tile = _sizes(config, channels, pixels, any(last.values()), flat)
        groups = ceil_div(channels, tile["CHANNELS"])
        feature_mse_bwd_kernel[(images * groups * ceil_div(pixels, tile["PIXELS"]),)](
            student, teacher, weights, inverse, upstream, grad, channels, pixels, images * pixels,
            masked, normalize, **last, **tile, **launch(config)
        )  # fmt: skip
        return grad

    key = _key(student, (images, channels, pixels), last, masked, normalize)
    return best("feature_mse_backward", key, CONFIGS, student.device, run)


def _key(
    student: Tensor, sizes: Sequence[int], last: dict[str, bool], *options: bool
) -> tuple[object, ...]:
    return (student.dtype, *shape_class(*sizes), *last.values(), *options)


class _FeatureMse(torch.autograd.Function):
    """Keeps the maps, and 2 numbers a pixel if normalised; the backward pass reads both again."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, mask: Tensor | None, normalize: bool
    ) -> Tensor:
        loss, inverse, stats = feature_mse_forward(student, teacher, mask, normalize)
        ctx.save_for_backward(student, teacher, mask, inverse, stats)
        ctx.normalize = normalize
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        outer = upstream[0].contiguous()
        return feature_mse_backward(*ctx.saved_tensors, outer, ctx.normalize), None, None, None


def _check(student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
    check_shapes(student, teacher)
    shape = tuple(student.shape)
    if len(shape) != 4:
        raise ValueError(f"maps must be [N, C, H, W]: student {shape}, teacher {shape}")
    if mask is None:
        return
    n, _, h, w = shape
    fits = tuple(mask.shape) in ((n, 1, h, w), (n, h, w)) and mask.device == student.device
    if not fits or not (mask.is_floating_point() or mask.dtype == torch.bool):
        raise ValueError(
            f"mask is {tuple(mask.shape)} {mask.dtype} on {mask.device}, the maps {shape} on"
            f" {student.device} need {(n, 1, h, w)} or {(n, h, w)} of bool or floating point"
        )


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    numbers = ("mask", "weights", "partial", "stats", "loss", "inverse", "upstream")
    types = dict.fromkeys(("C", "P", "steps", "programs", "size"), "i32") | {"plain": "fp32"}
    types |= dict.fromkeys(("student", "teacher", "grad"), POINTER[dtype])
    types |= dict.fromkeys(numbers, "*fp32")
    found = []
    for config in CONFIGS:
        for label in ("flat", "contiguous", "channels_last"):
            last, flat = label == "channels_last", label == "flat"
            sizes = _sizes(config, 1 if flat else 256, 1 << 20, last, flat)
            constants = {"MASKED": not flat, "LAST_S": last, "LAST_T": last, **sizes}
            own = types
            if flat:  # Triton makes a constant of a 1 when it runs
                constants["C"] = 1
                own = {name: kind for name, kind in types.items() if name != "C"}
            quick = config is CONFIGS[0]
            entries = [(feature_mse_fwd_kernel, constants, label, quick and flat)]
            for normalized in (False,) if flat else (False, True):
                backward = {**constants, "NORMALIZED": normalized}
                name = f"{label}{' normalized' if normalized else ''}"
                entries.append((feature_mse_bwd_kernel, backward, name, quick and flat))
            if not flat:
                entries.append(
                    (feature_mse_normalized_fwd_kernel, constants, label, quick and not last)
                )
            found += [Compilation(k, own, c, launch(config), n, q) for k, c, n, q in entries]
    if dtype == torch.float32:
        finish = {**FINISH, "MASKED": True}
        found.append(
            Compilation(feature_mse_finish_kernel, types, finish, {"num_warps": 16}, "", True)
        )
    return found


def _case(
    device: torch.device, dtype: torch.dtype, layout: torch.memory_format, full: bool
) -> Case:
    student, teacher = (
        torch.randn(8, 64, 288, 384, device=device).to(dtype).contiguous(memory_format=layout)
        for _ in range(2)
    )
    student.requires_grad_()
    mask = torch.rand(8, 1, 288, 384, device=device) if full else None
    return Case(
        kernel=lambda: feature_mse(student, teacher, mask, normalize=full),
        reference=lambda: feature_mse_reference(student, teacher, mask, full),
        leaves=[student],
        floor_bytes=5 * student.numel() * student.element_size()
        + (4 * mask.numel() if mask is not None else 0),
    )


KERNEL = Kernel(
    name="feature_mse",
    formula="sum m (s - t)^2 / (C sum m), optionally of s / |s| and t / |t| at each pixel",
    traffic="forward: both maps and the mask read; backward: the same, and the gradient written;"
    " normalised: two float32 a pixel written, and read instead of the mask",
    compilations=_compilations,
    settings=[
        Setting(
            f"{'masked, normalised ' if full else ''}8 x 64 x 288 x 384",
            partial(_case, full=full),
            layouts=(torch.contiguous_format, torch.channels_last),
        )
        for full in (False, True)
    ],
)
