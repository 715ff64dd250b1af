r"""SKT's Inter-layer Relation Transfer (Chen et al., ACM MM 2020, equation 5; the dense FSP).

Every map is max-pooled to the smallest map's size and normalised per image and channel (zero
mean, unit deviation over the pixels). For each pair i < j of maps Z_i [C_i, P], Z_j [C_j, P]:

    G_ij = Z_i Z_j^T / P
    loss = sum_{i<j} |G_ij(student) - G_ij(teacher)|^2

averaged over the batch (`reduction="paper"`), or the mean over all Gram entries. With D the
difference of all Grams at once, 0 within a layer, and c the reduction's factor, the gradient of a
pooled row x_a is one product more: 2 c / P / deviation_a (sum_b D_ab z_b - r_a z_a), where
r_a = sum_b D_ab G_ab(student) is what instance normalisation takes away.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from kdcompile.kernels._gram import EPS
from kdcompile.kernels._gram_launch import (
    compilations,
    gram_relation_backward,
    gram_relation_forward,
    gram_unpool,
    pool_factor,
    smallest,
)
from kdcompile.kernels._maps import check_finite, check_shapes, dense
from kdcompile.kernels._registry import Case, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton

Reduction = Literal["mean", "paper"]


def gram_relation(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    reduction: Reduction = "mean",
    *,
    check: bool = False,
) -> Tensor:
    """The Inter-RT loss, a float32 scalar.

    Args:
        students: at least two maps [N, C_i, H_i, W_i], already at the teacher's widths. The
            sizes are ceil(H_i / k_i), ceil(W_i / k_i) = those of the smallest map. Where several
            k_i fit, it is the least power of two, the stride of a network that halves its maps.
        teachers: the teacher's maps, of the same shapes; no gradient flows to them.
        reduction: "paper" sums over Gram entries, "mean" averages; both average over the batch.
        check: refuse values that are not finite; waits for the device.

    Of equal values in a pooling window the first has the gradient, as in PyTorch. A channel of
    one value, or of one pixel, is 0 throughout. Of half precision maps the kernels round the
    normalised values to float16. Deterministic. No image, no loss: 0.

    Raises:
        ValueError: the maps do not fit each other.
    """
    size = _check(students, teachers)
    if check:
        for s, t in zip(students, teachers, strict=True):
            check_finite(s, t)
    if size is None:
        return torch.stack([s.float().sum() for s in students]).sum()
    if not use_triton("gram_relation", *students, *teachers):
        return gram_relation_reference(students, teachers, reduction)
    maps = [dense(m) for m in (*students, *teachers)]
    loss: Tensor = _GramRelation.apply(gram_factor(students, reduction), *maps)  # type: ignore[no-untyped-call]
    return loss


def common_size(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Max-pooled to `size` = ceil(input / k) for one whole factor k.

    Raises:
        ValueError: no such factor exists.
    """
    factor = pool_factor(features, size)
    return max_pool2d(features, factor, ceil_mode=True) if factor > 1 else features


def grams(features: Sequence[Tensor]) -> list[Tensor]:
    """The Gram matrices [N, C_i, C_j] of every pair i < j of maps; float64 maps stay float64."""
    size = smallest(features)
    normal = [_normalized(common_size(_wide(f), size).flatten(2)) for f in features]
    return [torch.bmm(a, b.mT) / (size[0] * size[1]) for a, b in combinations(normal, 2)]


def gram_relation_reference(
    students: Sequence[Tensor], teachers: Sequence[Tensor], reduction: Reduction = "mean"
) -> Tensor:
    """Plain PyTorch; the arguments of `gram_relation`."""
    with full_precision(students[0]):
        pairs = list(zip(grams(students), grams([t.detach() for t in teachers]), strict=True))
        errors = torch.stack([(s - t).square().sum() for s, t in pairs])
        return errors.sum() * gram_factor(students, reduction)


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _normalized(rows: Tensor) -> Tensor:
    gap = rows - rows[:, :, :1].detach()  # a constant row is 0 exactly
    gap = gap - gap.mean(2, keepdim=True)
    return gap * (gap.square().mean(2, keepdim=True) + EPS).rsqrt()


def gram_factor(maps: Sequence[Tensor], reduction: Reduction) -> float:
    """What the sum of squared differences of one batch is multiplied with."""
    entries = sum(a.shape[1] * b.shape[1] for a, b in combinations(maps, 2))
    return 1 / maps[0].shape[0] / (1 if reduction == "paper" else entries)


class _GramRelation(torch.autograd.Function):
    """Keeps the student's Z, D, three numbers a channel and the arg-maxima; no map."""

    @staticmethod
    def forward(ctx: Any, factor: float, *maps: Tensor) -> Tensor:
        students, teachers = maps[: len(maps) // 2], maps[len(maps) // 2 :]
        loss, *saved = gram_relation_forward(students, teachers, factor)
        ctx.save_for_backward(*saved)
        ctx.factor, ctx.size = factor, smallest(students)
        ctx.like = [(tuple(m.shape), m.stride(), m.dtype) for m in students]
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        *saved, arg = ctx.saved_tensors
        height, width = ctx.size
        pixels, kinds = height * width, {dtype for _, _, dtype in ctx.like}
        common = kinds.pop() if len(kinds) == 1 else torch.float32
        flat = gram_relation_backward(*saved, upstream[0].contiguous(), ctx.factor, pixels, common)
        found: list[Tensor | None] = []
        begin = taken = 0
        for (shape, stride, dtype), wanted in zip(ctx.like, ctx.needs_input_grad[1:], strict=False):
            end = begin + shape[0] * shape[1] * pixels
            own, pooled = flat[begin:end], shape[2:] != (height, width)
            if not wanted:
                found.append(None)
            elif pooled or not _plain(shape, stride):
                found.append(gram_unpool(own, arg[taken:], shape, stride, height, width, dtype))
            else:
                found.append(own.view(shape).to(dtype))
            begin, taken = end, taken + (end - begin if pooled else 0)
        return (None, *found, *[None] * len(ctx.like))


def _plain(shape: Sequence[int], stride: Sequence[int]) -> bool:
    _, channels, height, width = shape
    return tuple(stride) == (channels * height * width, height * width, width, 1)


def _check(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> tuple[int, int] | None:
    """The common size; None where the maps hold nothing."""
    if len(students) != len(teachers):
        raise ValueError(f"maps differ: {len(students)} students, {len(teachers)} teachers")
    if len(students) < 2:
        raise ValueError(f"relations need at least two maps, got {len(students)}")
    first = students[0]
    for s, t in zip(students, teachers, strict=True):
        check_shapes(s, t)
        if s.dim() != 4:
            raise ValueError(f"maps must be [N, C, H, W]: {tuple(s.shape)} beside {first.shape}")
        if s.shape[0] != first.shape[0] or s.device != first.device:
            raise ValueError(
                f"maps of one batch and device are needed: {tuple(first.shape)} on"
                f" {first.device}, {tuple(s.shape)} on {s.device}"
            )
    if any(s.numel() == 0 for s in students):
        return None
    size = smallest(students)
    for s in students:
        pool_factor(s, size)
    return size


SIZES = (
    (64, 576, 768), (64, 288, 384), (128, 144, 192), (256, 72, 96), (512, 72, 96), (256, 72, 96),
    (1, 72, 96),
)  # fmt: skip


def _case(
    batch: int, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Case:
    def draw() -> list[Tensor]:
        maps = [torch.randn(batch, *size, device=device, dtype=dtype) for size in SIZES]
        return [m.contiguous(memory_format=layout) for m in maps]

    students, teachers = [m.requires_grad_() for m in draw()], draw()
    entries = sum(a * b for (a, *_), (b, *_) in combinations(SIZES, 2))
    return Case(
        kernel=lambda: gram_relation(students, teachers, "paper"),
        reference=lambda: gram_relation_reference(students, teachers, "paper"),
        leaves=students,
        floor_bytes=3 * sum(s.numel() * s.element_size() for s in students),
        # 2 P an entry: for each net, and twice for the gradient (either side of a pair)
        floor_flops=4 * 2 * batch * entries * 72 * 96,
    )


KERNEL = Kernel(
    name="gram_relation",
    formula="sum_{i<j} |Z_i Z_j^T / P (student) - Z_i Z_j^T / P (teacher)|^2, Z pooled, normalised",
    traffic=(
        "forward: both nets' maps read once; what is pooled written and read, Z written and read;"
        " backward: the student's Z read, the pooled gradient written, read where it is unpooled,"
        " the gradient written"
    ),
    compilations=compilations,
    settings=[
        Setting(
            "seven maps, batch 8",
            lambda device, dtype, layout: _case(8, device, dtype, layout),
            reach_ms={torch.float16: 2.0},
            layouts=(torch.contiguous_format, torch.channels_last),
        ),
    ],
)
