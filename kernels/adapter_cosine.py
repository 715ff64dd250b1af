r"""SKT's Intra-layer Pattern Transfer (Chen et al., ACM MM 2020, equation 3).

For each pixel p of a tap, with the student's C_s channels x_p and the teacher's C_t channels t_p:

    f_p  = relu(W x_p + b)                      the 1x1 adapter; without one, f_p = x_p
    loss = sum_p (1 - f_p . t_p / (|f_p| |t_p|))

summed over pixels and averaged over the batch (`reduction="paper"`), or averaged over both.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, relu

Reduction = Literal["mean", "paper"]
EPS = 1e-6


def adapt(student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """relu(W x + b) at every pixel in float32: [N, C_s, H, W] to the teacher's [N, C_t, H, W].

    Raises:
        ValueError: the maps do not fit each other.
    """
    check_maps(student, teacher, weight)
    if weight is None:
        return student.float()
    return relu(conv2d(student.float(), weight.float()[:, :, None, None], bias))


def adapter_cosine_reference(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Plain PyTorch; the arguments of `adapter_cosine`."""
    return cosine_distance(adapt(student, teacher, weight, bias), teacher, reduction)


def cosine_distance(features: Tensor, teacher: Tensor, reduction: Reduction = "mean") -> Tensor:
    """1 - cosine over channels at every pixel of two [N, C, H, W] maps, reduced to a scalar.

    A pixel at which either map is all zero counts as distance 1 and has gradient 0 there.
    """
    f, t = features.float(), teacher.detach().float()
    dot = (f * t).sum(1)
    norms = f.square().sum(1).clamp_min(EPS**2).sqrt() * t.square().sum(1).clamp_min(EPS**2).sqrt()
    distance = 1 - dot / norms
    return distance.mean() if reduction == "mean" else distance.flatten(1).sum(1).mean()


def adapter_cosine(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """The Intra-PT loss of one tap, a float32 scalar.

    Args:
        student: [N, C_s, H, W], any floating type.
        teacher: [N, C_t, H, W], no gradient flows to it.
        weight: adapter [C_t, C_s], or None where C_s = C_t.
        bias: adapter bias [C_t].
        reduction: "paper" sums over pixels, "mean" averages; both average over the batch.

    Raises:
        ValueError: the maps do not fit each other.
    """
    return adapter_cosine_reference(student, teacher, weight, bias, reduction)


def check_maps(student: Tensor, teacher: Tensor, weight: Tensor | None) -> None:
    """Raise ValueError unless the maps agree in batch and size, and the adapter in channels."""
    widths = (teacher.shape[1], student.shape[1])
    expected = torch.Size(widths) if weight is not None else None
    if student.shape[0] != teacher.shape[0] or student.shape[2:] != teacher.shape[2:]:
        raise ValueError(f"maps differ: {tuple(student.shape)} and {tuple(teacher.shape)}")
    if weight is not None and weight.shape != expected:
        raise ValueError(f"adapter is {tuple(weight.shape)}, the maps need {widths}")
    if weight is None and widths[0] != widths[1]:
        raise ValueError(f"{widths[1]} and {widths[0]} channels need an adapter")
