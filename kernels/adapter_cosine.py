r"""SKT's Intra-layer Pattern Transfer (Chen et al., ACM MM 2020, equation 3).

For each pixel p of a tap, with the student's C_s channels x_p and the teacher's C_t channels t_p:

    f_p  = relu(W x_p + b)                      the 1x1 adapter; without one, f_p = x_p
    loss = sum_p (1 - f_p . t_p / (|f_p| |t_p|))

summed over pixels and averaged over the batch (`reduction="paper"`), or averaged over both.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu

from kdcompile.kernels._adapter import EPS
from kdcompile.kernels._adapter_launch import LONGEST, WIDEST, adapter_forward, compilations
from kdcompile.kernels._maps import check_finite, check_pair, dense
from kdcompile.kernels._registry import Case, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton
from kdcompile.kernels._scale import consume

Reduction = Literal["mean", "paper"]


def adapter_cosine(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    reduction: Reduction = "mean",
    *,
    check: bool = False,
) -> Tensor:
    """The Intra-PT loss of one tap, a float32 scalar.

    Args:
        student: [N, C_s, H, W], float32, float16 or bfloat16.
        teacher: [N, C_t, H, W], of the same type; no gradient flows to it.
        weight: adapter [C_t, C_s], or None where C_s = C_t.
        bias: adapter bias [C_t].
        reduction: "paper" sums over pixels, "mean" averages; both average over the batch.
        check: refuse values that are not finite; waits for the device.

    A pixel at which either map's norm is below 1e-6 has distance 1 and gradient 0. The forward pass
    reads the teacher once and stores the gradient of the student without the factor 1 / (N H W),
    which would flush it to zero in float16; there it saturates at 65504. Deterministic.

    Raises:
        ValueError: the maps do not fit each other, or the adapter does not fit them.
    """
    check_maps(student, teacher, weight, bias)
    if check:
        check_finite(student, teacher)
    if student.numel() == 0:
        return empty_loss(student, weight, bias)
    if not use_triton("adapter_cosine", student, teacher, unless=unless(student, weight)):
        return adapter_cosine_reference(student, teacher, weight, bias, reduction)
    leaves = (student, weight, bias)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    factor = 1 / (student.shape[0] if reduction == "paper" else student[:, 0].numel())
    held = None if weight is None else weight.contiguous()
    loss: Tensor = _AdapterCosine.apply(  # type: ignore[no-untyped-call]
        dense(student), dense(teacher), held, bias, factor, wanted
    )
    return loss


def adapter_cosine_reference(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Plain PyTorch; the arguments of `adapter_cosine`."""
    return cosine_distance(adapt(student, teacher, weight, bias), teacher, reduction)


def adapt(student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """relu(W x + b) at every pixel in float32: [N, C_s, H, W] to the teacher's [N, C_t, H, W].

    Raises:
        ValueError: the maps do not fit each other.
    """
    check_maps(student, teacher, weight, bias)
    wide = torch.float64 if student.dtype == torch.float64 else torch.float32
    with full_precision(student):
        if weight is None:
            return student.to(wide)
        own = None if bias is None else bias.to(wide)
        return relu(conv2d(student.to(wide), weight.to(wide)[:, :, None, None], own))


def cosine_distance(features: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """1 - cosine over channels at every pixel of two [N, C, H, W] maps, reduced to a scalar.

    A pixel at which either map's norm is below 1e-6 has distance 1 and gradient 0.
    """
    with full_precision(features):
        t = teacher.detach().to(features.dtype)
        ff, tt = features.square().sum(1), t.square().sum(1)
        least = EPS**2
        alive = (ff > least) & (tt > least)
        norms = ff.clamp_min(least).sqrt() * tt.clamp_min(least).sqrt()
        cosine = torch.where(alive, (features * t).sum(1) / norms, 0.0)
        distance = 1 - cosine
        return distance.mean() if reduction == "mean" else distance.flatten(1).sum(1).mean()


class _AdapterCosine(torch.autograd.Function):
    """Gradients are computed with the loss; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        factor: float,
        wanted: bool,
    ) -> Tensor:
        options = (weight, bias, factor, wanted, 0)
        sums, grad, *_ = adapter_forward(student, teacher, *options)
        ctx.save_for_backward(grad, sums, weight, bias)
        ctx.factor = factor
        return sums[-1].clone()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad, sums, weight, bias = ctx.saved_tensors
        own, scaled = consume(grad, sums[:-1], upstream[0], ctx.factor)
        if weight is None:
            return own, None, None, None, None, None
        to_weight = scaled[: weight.numel()].view(weight.shape).to(weight.dtype)
        to_bias = None if bias is None else scaled[weight.numel() :].to(bias.dtype)
        return own, None, to_weight, to_bias, None, None


def empty_loss(student: Tensor, *parameters: Tensor | None) -> Tensor:
    """0 for a batch of no pixels, with a gradient of 0 for the adapter."""
    held = [0 * p.float().sum() for p in parameters if p is not None]
    return torch.stack([student.float().sum(), *held]).sum()


def check_maps(
    student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None = None
) -> None:
    """Raise ValueError unless the maps agree in batch and size, and the adapter in channels."""
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(
            f"maps differ: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )
    check_pair(student, teacher)
    widths = (teacher.shape[1], student.shape[1])
    if weight is None and widths[0] != widths[1]:
        raise ValueError(f"{widths[1]} and {widths[0]} channels need an adapter")
    if weight is not None and tuple(weight.shape) != widths:
        raise ValueError(f"adapter is {tuple(weight.shape)}, the maps need {widths}")
    if bias is not None and (weight is None or tuple(bias.shape) != widths[:1]):
        raise ValueError(f"bias is {tuple(bias.shape)}, the maps need an adapter and {widths[:1]}")


def unless(student: Tensor, weight: Tensor | None) -> str | None:
    """Why there is no kernel for these widths, or None."""
    most = LONGEST if weight is None else WIDEST
    wide = student.shape[1] > most
    return f"no kernel for over {most} student channels" if wide else None


TAPS = (
    (16, 64, 576, 768), (16, 64, 288, 384), (32, 128, 144, 192), (64, 256, 72, 96),
    (128, 512, 72, 96), (64, 256, 72, 96),
)  # fmt: skip
"""Student channels, teacher channels, height and width of the taps of CSRNet at 576x768."""


def tap_inputs(
    batch: int, device: torch.device, dtype: torch.dtype, layout: torch.memory_format, adapt: bool
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Random student maps, teacher maps, weights and biases of `TAPS`; the students' and the
    adapters' require a gradient.
    """

    def draw(channels: int, height: int, width: int) -> Tensor:
        full = torch.randn(batch, channels, height, width, device=device, dtype=dtype)
        return full.relu_().contiguous(memory_format=layout)

    students = [draw(s if adapt else t, h, w).requires_grad_() for s, t, h, w in TAPS]
    teachers = [draw(t, h, w) for _, t, h, w in TAPS]
    weights = [torch.randn(t, s, device=device) / s**0.5 for s, t, *_ in TAPS]
    biases = [torch.randn(t, device=device) for _, t, *_ in TAPS]
    return (
        students,
        teachers,
        [w.requires_grad_() for w in weights],
        [b.requires_grad_() for b in biases],
    )


def _case(
    adapt: bool, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Case:
    students, teachers, weights, biases = tap_inputs(8, device, dtype, layout, adapt)
    taps: list[tuple[Tensor | None, ...]] = list(
        zip(students, teachers, *((weights, biases) if adapt else ()), strict=True)
    )
    own, theirs = (sum(m.numel() * m.element_size() for m in maps) for maps in (students, teachers))
    pixels = [m[:, 0].numel() for m in students]
    products = sum(s * t * p for (s, t, *_), p in zip(TAPS, pixels, strict=True))

    def total(loss: Any) -> Tensor:
        return torch.stack([loss(*tap) for tap in taps]).sum()

    return Case(
        kernel=lambda: total(adapter_cosine),
        reference=lambda: total(adapter_cosine_reference),
        leaves=[*students, *weights, *biases] if adapt else students,
        floor_bytes=4 * own + theirs,
        floor_flops=3 * 2 * products if adapt else 0,
    )


LAYOUTS = (torch.contiguous_format, torch.channels_last)
KERNEL = Kernel(
    name="adapter_cosine",
    formula="mean over pixels of 1 - cos(relu(W s + b), t)",
    traffic=(
        "forward: both maps read once, the student's unscaled gradient written (beyond 64 teacher"
        " channels both are read once more for the adapter's gradient); backward: that gradient"
        " read and written"
    ),
    compilations=compilations,
    settings=[
        Setting(
            "six taps, batch 8, 576x768",
            lambda device, dtype, layout: _case(True, device, dtype, layout),
            dtypes=(torch.float16, torch.bfloat16, torch.float32),
            reach_ms={torch.float16: 0.85, torch.float32: 1.8},
            layouts=LAYOUTS,
        ),
        Setting(
            "six taps without adapter, batch 8, 576x768",
            lambda device, dtype, layout: _case(False, device, dtype, layout),
            reach_ms={torch.float16: 1.6},
            layouts=LAYOUTS,
        ),
    ],
)
