r"""SKT's Intra-layer Pattern Transfer (Chen et al., ACM MM 2020, equation 3).

For each pixel p of a tap, with the student's C_s channels x_p and the teacher's C_t channels t_p:

    f_p  = relu(W x_p + b)                      the 1x1 adapter; without one, f_p = x_p
    loss = sum_p (1 - f_p . t_p / (|f_p| |t_p|))

summed over pixels and averaged over the batch (`reduction="paper"`), or averaged over both.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu

from kdcompile.kernels._adapter import EPS
from kdcompile.kernels._adapter_fold import consume_taps
from kdcompile.kernels._adapter_launch import (
    LONGEST,
    WIDEST,
    adapter_taps_forward,
    begins,
    compilations,
)
from kdcompile.kernels._maps import check_finite, check_pair, dense
from kdcompile.kernels._registry import Case, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton

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
    return adapter_cosines([student], [teacher], [weight], [bias], reduction, check=check)


def adapter_cosines(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None],
    reduction: Reduction = "mean",
    *,
    check: bool = False,
) -> Tensor:
    """The Intra-PT loss of several taps of one type, a float32 scalar: `adapter_cosine` of each.

    The arguments are those of `adapter_cosine`, one a tap; "paper" sums over the taps too, and
    "mean" averages over them. One launch adds up the sums of all taps, and one is the backward
    pass.

    Raises:
        ValueError: the maps of a tap do not fit each other, its adapter does not fit them, or the
            taps have several types.
    """
    taps = list(zip(students, teachers, weights, biases, strict=True))
    for tap in taps:
        check_maps(*tap)
        if check:
            check_finite(*tap[:2])
    if len({s.dtype for s in students}) != 1:
        raise ValueError(f"maps of one type, not {sorted({str(s.dtype) for s in students})}")
    share = 1.0 if reduction == "paper" else 1 / len(taps)
    if any(s.numel() == 0 for s in students):
        return torch.stack([empty_loss(s, w, b) for s, _, w, b in taps]).sum()
    reasons = [unless(s, w) for s, _, w, _ in taps]
    reason = next((r for r in reasons if r), None)
    if not use_triton("adapter_cosine", *students, *teachers, unless=reason):
        return share * torch.stack([adapter_cosine_reference(*t, reduction) for t in taps]).sum()
    leaves = (t for s, _, *adapter in taps for t in (s, *adapter))
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in leaves)
    factors = [
        share / (s.shape[0] if reduction == "paper" else s.numel() // s.shape[1]) for s in students
    ]
    loss: Tensor = _AdapterCosine.apply(  # type: ignore[no-untyped-call]
        factors, wanted, *map(dense, students), *map(dense, teachers),
        *(None if w is None else w.contiguous() for w in weights), *biases
    )  # fmt: skip
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
        ctx: Any, factors: Sequence[float], wanted: bool, *tensors: Tensor | None
    ) -> Tensor:
        n = len(factors)
        students, teachers, weights, biases = (tensors[i * n : (i + 1) * n] for i in range(4))
        loss, sums, grad = adapter_taps_forward(
            students, teachers, weights, biases, factors, wanted
        )
        ctx.save_for_backward(sums, grad)
        ctx.factors = factors
        ctx.students = [(s.shape, s.stride()) for s in students if s is not None]
        ctx.kinds = [
            None if w is None else (w.shape, w.dtype, None if b is None else b.dtype)
            for w, b in zip(weights, biases, strict=True)
        ]
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        sums, grad = ctx.saved_tensors
        n = len(ctx.factors)
        places = begins([shape.numel() for shape, _ in ctx.students])
        grad, sums = consume_taps(grad, sums, upstream[0], places[:-1], ctx.factors)
        maps = [
            grad.as_strided(shape, stride, place)
            for (shape, stride), place in zip(ctx.students, places, strict=False)
        ]
        sizes = [size for k in ctx.kinds if k for size in (k[0].numel(), k[0][0])]
        found = iter(torch.split(sums, sizes) if sizes else ())
        to_weights: list[Tensor | None] = []
        to_biases: list[Tensor | None] = []
        for kind in ctx.kinds:
            if kind is None:
                to_weights.append(None)
                to_biases.append(None)
                continue
            shape, dtype, of_bias = kind
            to_weights.append(next(found).view(shape).to(dtype))
            own = next(found)
            to_biases.append(None if of_bias is None else own.to(of_bias))
        return None, None, *maps, *[None] * n, *to_weights, *to_biases


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
    none = [None] * len(TAPS)
    taps = (students, teachers, *((weights, biases) if adapt else (none, none)))
    own, theirs = (sum(m.numel() * m.element_size() for m in maps) for maps in (students, teachers))
    pixels = [m[:, 0].numel() for m in students]
    products = sum(s * t * p for (s, t, *_), p in zip(TAPS, pixels, strict=True))

    def reference() -> Tensor:
        losses = [adapter_cosine_reference(*tap) for tap in zip(*taps, strict=True)]
        return torch.stack(losses).mean()

    return Case(
        kernel=lambda: adapter_cosines(*taps),
        reference=reference,
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
        " channels both are read once more for the adapter's gradient, which the floor leaves out);"
        " backward: that gradient read and written"
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
