"""Shapes, memory formats and addresses that the kernels share."""

import os
from typing import Any, no_type_check

import torch
from torch import Tensor

from kdcompile.kernels._runtime import jit, tl

# The interpreter multiplies the bits of bfloat16, not their values: there products are float32.
INTERPRETED: Any = getattr(tl, "constexpr", bool)(os.environ.get("TRITON_INTERPRET") == "1")


def walk(*tensors: Tensor) -> tuple[int, int]:
    """(images, pixels) to walk over dense maps [N, C, ...] or rows [N, C] of one batch and size.

    Where the channels of all lie innermost the batch is one long image, so that many tiny maps
    still fill a block.
    """
    first = tensors[0]
    batch, pixels = first.shape[0], first[0, 0].numel() if first.numel() else 0
    return (1, batch * pixels) if all(is_last(t) for t in tensors) else (batch, pixels)


def is_last(tensor: Tensor) -> bool:
    """Whether a dense tensor's channels are innermost (rows and single pixels count as that)."""
    if tensor.dim() == 2 or tensor.shape[1] == 1 or tensor[0:1, 0:1].numel() <= 1:
        return True
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself where it is contiguous or channels_last, else a contiguous copy."""
    if tensor.is_contiguous():
        return tensor
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous()


def check_pair(student: Tensor, teacher: Tensor, what: str = "maps") -> None:
    """Raise ValueError unless student and teacher can be compared: device, type and gradient."""
    if student.device != teacher.device:
        raise ValueError(
            f"{what} lie apart: student on {student.device}, teacher on {teacher.device}"
        )
    if student.dtype != teacher.dtype:
        raise ValueError(f"{what} differ: student {student.dtype}, teacher {teacher.dtype}")
    if teacher.requires_grad:
        raise ValueError(
            f"the teacher's {what} {tuple(teacher.shape)} require a gradient, as the student's do"
            f" {tuple(student.shape)}: run the teacher under torch.no_grad()"
        )


def check_shapes(student: Tensor, teacher: Tensor, what: str = "maps") -> None:
    """`check_pair`, and equal shapes."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} differ: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        )
    check_pair(student, teacher, what)


def check_finite(student: Tensor, teacher: Tensor, what: str = "maps") -> None:
    """Raise ValueError unless every value of both is finite; waits for the device."""
    bad = [int((~torch.isfinite(t)).sum()) for t in (student, teacher)]
    if any(bad):
        raise ValueError(
            f"{what} hold values that are not finite: student {bad[0]} of {student.numel()},"
            f" teacher {bad[1]} of {teacher.numel()}"
        )


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is at least `size` and `least`."""
    return max(1 << max(size - 1, 0).bit_length(), least)


@jit
@no_type_check
def offsets(image, channel, pixel, C, P, LAST: tl.constexpr):
    """Addresses within a map of C channels and P pixels, in 64 bits; the arguments broadcast."""
    base = image.to(tl.int64) * C * P
    return base + (pixel.to(tl.int64) * C + channel if LAST else channel.to(tl.int64) * P + pixel)


@jit
@no_type_check
def matmul(a, b, total, PREC: tl.constexpr):
    """total + a @ b with float32 accumulation, of operands of one type; PREC is for float32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    return tl.dot(a, b, total, input_precision=PREC)
