r"""Both transfers of SKT (Chen et al., ACM MM 2020, equations 3 and 5) from the students' maps.

With the adapted maps F_t = relu(W_t x_t + b_t) of every tap t, the teacher's maps T_t, and the
two density maps as one more layer:

    intra_t = sum over pixels (1 - cos(F_t, T_t))            as in `adapter_cosine`
    inter   = sum_{i<j} |G_ij(F) - G_ij(T)|^2                as in `gram_relation`

The adapted maps are never written to memory: the pass over a tap that finds its distance also
emits both maps pooled to the common size, with the place of each maximum. So the teacher is read
once for both transfers, and the student once more in the backward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcompile.kernels._adapter_launch import adapter_forward
from kdcompile.kernels._gram_launch import (
    gram_relation_backward,
    gram_relation_forward,
    pool_factor,
    smallest,
)
from kdcompile.kernels._maps import check_finite, check_shapes, dense
from kdcompile.kernels._registry import Case, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton
from kdcompile.kernels._scale import is_last_use, scaled
from kdcompile.kernels._tap_backward import compilations, run_tap_backward, tap_backward
from kdcompile.kernels.adapter_cosine import (
    LAYOUTS,
    TAPS,
    Reduction,
    adapt,
    check_maps,
    cosine_distance,
    empty_loss,
    tap_inputs,
    unless,
)
from kdcompile.kernels.gram_relation import gram_factor, gram_relation_reference

WIDEST_WINDOW = 15  # the place of a maximum is one byte, and 255 says that there is none


def skt_tap(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    density: Tensor,
    teacher_density: Tensor,
    reduction: Reduction = "mean",
    *,
    check: bool = False,
) -> tuple[Tensor, Tensor]:
    """Intra-PT of every tap, float32 [taps], and Inter-RT, a float32 scalar.

    Args:
        students: maps [N, C_s, H, W] of one type.
        teachers: maps [N, C_t, H, W]; no gradient flows to them.
        weights, biases: an adapter [C_t, C_s] and [C_t] a tap.
        density: the student's density [N, 1, h, w], a layer of Inter-RT; it may have another type.
        teacher_density: the teacher's, of the same shape and type.
        reduction: "paper" sums over pixels and Gram entries, "mean" averages; both average over
            the batch.
        check: refuse values that are not finite; waits for the device.

    In float16 gradients stay unscaled until the student's gradient is written. Deterministic.

    Raises:
        ValueError: maps, adapters and densities do not fit each other, or do not pool.
    """
    taps = list(zip(students, teachers, weights, biases, strict=True))
    for tap in taps:
        check_maps(*tap)
    check_shapes(density, teacher_density, "densities")
    pairs = [*zip(students, teachers, strict=True), (density, teacher_density)]
    if check:
        for pair in pairs:
            check_finite(*pair)
    if any(student.numel() == 0 for student, _ in pairs):
        intra = torch.stack([empty_loss(s, w, b) for s, _, w, b in taps])
        return intra, density.float().sum()
    size = smallest([*students, density])
    windows = [pool_factor(s, size) for s in students]
    reasons = [unless(s, w) for s, _, w, _ in taps]
    if max(windows) > WIDEST_WINDOW:
        reasons.append(f"no kernel for windows of {max(windows)}")
    if density.shape[2:] != size:
        reasons.append("no kernel for a density larger than the smallest tap")
    reason = next((r for r in reasons if r), None)
    if not use_triton("skt_tap", *students, *teachers, density, unless=reason):
        return skt_tap_reference(
            students, teachers, weights, biases, density, teacher_density, reduction
        )
    factors = [1 / (s.shape[0] if reduction == "paper" else s[:, 0].numel()) for s in students]
    plain = (factors, windows, gram_factor([*teachers, density], reduction))
    parameters = [w.contiguous() for w in weights], biases
    maps = [[dense(m) for m in side] for side in zip(*pairs, strict=True)]
    found: tuple[Tensor, Tensor] = _SktTap.apply(  # type: ignore[no-untyped-call]
        plain, len(taps), *maps[0], *parameters[0], *parameters[1], *maps[1]
    )
    return found


def skt_tap_reference(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    density: Tensor,
    teacher_density: Tensor,
    reduction: Reduction = "mean",
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch; the arguments of `skt_tap`."""
    taps = zip(students, teachers, weights, biases, strict=True)
    adapted = [adapt(*tap) for tap in taps]
    pairs = zip(adapted, teachers, strict=True)
    intra = torch.stack([cosine_distance(f, t, reduction) for f, t in pairs])
    with full_precision(density):
        wide = adapted[0].dtype
        inter = gram_relation_reference(
            [*adapted, density.to(wide)], [*teachers, teacher_density], reduction
        )
    return intra, inter


class _SktTap(torch.autograd.Function):
    """Keeps the students' maps, their unscaled gradients, the arg-maxima and the relations' D."""

    @staticmethod
    def forward(ctx: Any, plain: Any, taps: int, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        factors, windows, gram = plain
        students, density = tensors[:taps], tensors[taps]
        weights, biases = tensors[taps + 1 : 2 * taps + 1], tensors[2 * taps + 1 : 3 * taps + 1]
        teachers, teacher_density = tensors[3 * taps + 1 : -1], tensors[-1]
        emitted = [
            adapter_forward(s, t, w, b, factor, True, window)
            for s, t, w, b, factor, window in zip(
                students, teachers, weights, biases, factors, windows, strict=True
            )
        ]
        pooled_s, pooled_t = ([e[i] for e in emitted] for i in (2, 3))
        inter, *relations, _ = gram_relation_forward(
            [*pooled_s, density], [*pooled_t, teacher_density], gram
        )
        kept = [(e[1], e[0], e[4]) for e in emitted]
        flat = [tensor for of_tap in zip(*kept, strict=True) for tensor in of_tap]
        ctx.save_for_backward(*students, *weights, *flat, *relations)
        ctx.plain, ctx.taps = plain, taps
        ctx.density, ctx.kinds = (density.shape, density.dtype), [b.dtype for b in biases]
        return torch.stack([e[0][-1] for e in emitted]), inter

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        taps, (factors, windows, gram) = ctx.taps, ctx.plain
        saved = ctx.saved_tensors
        students, weights, grads, sums, args = (saved[i * taps : (i + 1) * taps] for i in range(5))
        relations, shape = saved[5 * taps :], args[0].shape
        pixels = shape[2] * shape[3]
        intra, inter = (u.contiguous() for u in upstream)
        # without the tiny factor, which the last kernel of each tap applies in float32
        flat = gram_relation_backward(*relations, None, pixels / 2, pixels, students[0].dtype)
        begin, found = 0, []
        for i, (student, weight, arg) in enumerate(zip(students, weights, args, strict=True)):
            own = flat[begin : begin + arg.numel()]
            begin += arg.numel()
            inputs = (student, weight, own, arg, grads[i], sums[i], intra, inter, windows[i], i)
            found.append(_tap_gradients(*inputs, factors[i], 2 * gram / pixels))
        size, kind = ctx.density
        last, _ = scaled(flat[begin:].to(kind), sums[0][:0], inter, 2 * gram / pixels)
        to_weights = [
            g[: w.numel()].view(w.shape) for (_, g), w in zip(found, weights, strict=True)
        ]
        to_biases = [g[w.numel() :] for (_, g), w in zip(found, weights, strict=True)]
        return (
            None, None, *(g for g, _ in found), last.view(size),
            *(g.to(w.dtype) for g, w in zip(to_weights, weights, strict=True)),
            *(g.to(k) for g, k in zip(to_biases, ctx.kinds, strict=True)),
            *[None] * (taps + 1),
        )  # fmt: skip


def _tap_gradients(
    student: Tensor, weight: Tensor, pooled: Tensor, arg: Tensor, grad: Tensor, sums: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`tap_backward`, in place of `grad` where autograd frees that right after."""
    args: tuple[Any, ...] = (student, weight, pooled, arg, grad, sums, *rest)
    if not is_last_use(grad):
        return tap_backward(*args)  # type: ignore[no-any-return]
    return grad, run_tap_backward(*[*args, grad])


def _case(device: torch.device, dtype: torch.dtype, layout: torch.memory_format) -> Case:
    inputs = tap_inputs(8, device, dtype, layout, True)
    students, _, weights, biases = inputs
    densities = [torch.randn(8, 1, 72, 96, device=device, dtype=dtype) for _ in range(2)]
    density = densities[0].requires_grad_()
    own, theirs = (sum(m.numel() * m.element_size() for m in maps) for maps in inputs[:2])
    products = sum(s * t * h * w for s, t, h, w in TAPS) * 8
    widths = [t for _, t, *_ in TAPS] + [1]
    entries = (sum(widths) ** 2 - sum(w * w for w in widths)) // 2

    def total(losses: tuple[Tensor, Tensor]) -> Tensor:
        return losses[0].sum() + losses[1]

    return Case(
        kernel=lambda: total(skt_tap(*inputs, density, densities[1], "paper")),
        reference=lambda: total(skt_tap_reference(*inputs, density, densities[1], "paper")),
        leaves=[*students, *weights, *biases, density],
        floor_bytes=5 * own + theirs,
        floor_flops=4 * 2 * products + 4 * 2 * 8 * entries * 72 * 96,
    )


KERNEL = Kernel(
    name="skt_tap",
    formula="adapter_cosine of every tap, and gram_relation of the adapted maps and the density",
    traffic=(
        "forward: both maps read once (beyond 64 teacher channels once more), the student's"
        " unscaled gradient and both pooled maps written; then as gram_relation from pooled maps;"
        " backward: the student and its unscaled gradient read, the gradient written"
    ),
    compilations=compilations,
    settings=[
        Setting(
            "six taps and the density, batch 8, 576x768",
            _case,
            reach_ms={torch.float16: 1.8},
            layouts=LAYOUTS,
        ),
    ],
)
