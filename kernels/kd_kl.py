r"""Softened Kullback-Leibler divergence on logits (Hinton et al., 2015), row by row.

For a row of student logits s and teacher logits t over the classes lo <= k < hi:

    u = s / (T sigma_s),  v = t / (T sigma_t)          sigma = 1 unless `standardize`
    forward  KL = sum_k q_k (log q_k - log p_k),       p = softmax(u), q = softmax(v)
    reverse  KL = sum_k p_k (log p_k - log q_k)
    loss     = T^2 / rows * sum_rows w KL

`standardize` is the logit standardisation of Sun et al. (CVPR 2024) and, with T = 1, the
self-adjusted temperature of MIX-KD (2211.03946): sigma is the row's standard deviation (unbiased)
and is differentiated. Each row has one of M teachers, by index (mixtures of teachers).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcompile.kernels._kd_kl import kd_kl_bwd_kernel, kd_kl_fwd_kernel
from kdcompile.kernels._maps import (
    ceil_div,
    check_finite,
    check_pair,
    dense,
    is_last,
    walk,
)
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton
from kdcompile.kernels._tune import Config, best, shape_class

EPS = 1e-6  # least standard deviation of a row
CONFIGS: Sequence[Config] = (
    {"ROWS": 64, "CLASSES": 16, "num_warps": 4, "num_stages": 2},
    {"ROWS": 8, "CLASSES": 64, "num_warps": 4, "num_stages": 2},
    {"ROWS": 4, "CLASSES": 256, "num_warps": 4, "num_stages": 2},
    {"ROWS": 8, "CLASSES": 256, "num_warps": 8, "num_stages": 1},
    {"ROWS": 32, "CLASSES": 32, "num_warps": 8, "num_stages": 2},
    {"ROWS": 1, "CLASSES": 1024, "num_warps": 4, "num_stages": 1},
    {"ROWS": 1, "CLASSES": 2048, "num_warps": 8, "num_stages": 2},
)


def kd_kl(
    student: Tensor,
    teacher: Tensor,
    temperature: float = 1.0,
    *,
    weight: Tensor | None = None,
    classes: tuple[int, int] | None = None,
    index: Tensor | None = None,
    standardize: bool = False,
    reverse: bool = False,
    check: bool = False,
) -> Tensor:
    """The softened KL loss with the factor T^2, a float32 scalar.

    Args:
        student: logits [R, K], or of a dense head [N, K, H, W] with R = N H W rows.
        teacher: the same shape; with `index` [M, *student.shape]. No gradient flows to it.
        temperature: T > 0.
        weight: float32 [R], the weight of each row; 1 each by default. No gradient flows to it.
        classes: half-open range of classes that take part; all by default.
        index: int64 [R], which of the M teachers a row follows, from 0 to M - 1.
        standardize: divide each row by its standard deviation first.
        reverse: KL(p || q) instead of KL(q || p).
        check: refuse values that are not finite and an index beyond M; waits for the device.

    A logit of -inf has probability 0. Deterministic. No row, no loss: 0.

    Raises:
        ValueError: student and teacher do not fit each other, or an option does not fit them.
    """
    lo, hi = classes or (0, student.shape[1])
    _check(student, teacher, temperature, weight, (lo, hi), index)
    if check:
        check_finite(student, teacher, "logits")
        if index is not None and not bool(((index >= 0) & (index < len(teacher))).all()):
            raise ValueError(f"index leaves the {len(teacher)} teachers of student {student.shape}")
    if student.numel() == 0:
        return student.float().sum()
    options = (temperature, weight, lo, hi, index, standardize, reverse)
    if not use_triton("kd_kl", student, teacher):
        return kd_kl_reference(student, teacher, *options)
    theirs = dense(teacher) if index is None else teacher.contiguous()
    loss: Tensor = _KdKl.apply(dense(student), theirs, *options)  # type: ignore[no-untyped-call]
    return loss


def kd_kl_reference(
    student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None, lo: int, hi: int,
    index: Tensor | None, standardize: bool, reverse: bool,
) -> Tensor:  # fmt: skip
    """Plain PyTorch; the arguments of `kd_kl`, `classes` as lo and hi."""
    with full_precision(student):
        s, t = _rows(student), _rows(teacher) if index is None else _selected(teacher, index)
        s, t = _softened(s[:, lo:hi], standardize), _softened(t[:, lo:hi].detach(), standardize)
        p, q = (s / temperature).log_softmax(1), (t / temperature).log_softmax(1)
        a, b = (p, q) if reverse else (q, p)
        used = a.exp() > 0  # 0 log 0 = 0, and its gradient too
        gap = a.masked_fill(~used, 0) - b.masked_fill(~used, 0)
        rows = (a.exp() * gap).sum(1)
        weighted = rows if weight is None else rows * weight
        return temperature**2 * weighted.mean()


def _rows(logits: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.movedim(1, -1).reshape(-1, logits.shape[1])


def _selected(teachers: Tensor, index: Tensor) -> Tensor:
    rows = torch.stack([_rows(t) for t in teachers])
    return rows[index, torch.arange(len(index), device=index.device)]


def _softened(rows: Tensor, standardize: bool) -> Tensor:
    if not standardize:
        return rows
    centred = rows - rows.mean(1, keepdim=True)
    variance = centred.square().sum(1, keepdim=True) / max(rows.shape[1] - 1, 1)
    return centred / variance.clamp_min(EPS**2).sqrt()


def _arguments(
    student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None, lo: int, hi: int,
    index: Tensor | None, standardize: bool, reverse: bool,
) -> tuple[int, tuple[Any, ...], dict[str, Any]]:  # fmt: skip
    """Images, the kernels' numbers from P to rows, and their constants."""
    one = teacher if index is None else teacher[0]
    images, pixels = walk(student, one)
    rows = images * pixels
    numbers = (pixels, temperature, temperature**2 / rows, student.numel(), rows)
    constants = {
        "C": student.shape[1], "lo": lo, "width": hi - lo, "LAST_S": is_last(student),
        "LAST_T": is_last(one), "INDEXED": index is not None, "WEIGHTED": weight is not None,
        "STD": standardize, "REVERSE": reverse, "EPS": EPS,
    }  # fmt: skip
    return images, numbers, constants


def _forward_fake(student: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = student.numel() // student.shape[1]
    return (
        student.new_empty((), dtype=torch.float32),
        student.new_empty((3, rows), dtype=torch.float32),
    )


@operator(_forward_fake)
def kd_kl_forward(
    student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None, lo: int, hi: int,
    index: Tensor | None, standardize: bool, reverse: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The loss, and [3, R]: log-sum-exp of u and v and the KL of each row."""
    options = (temperature, weight, lo, hi, index, standardize, reverse)
    images, numbers, constants = _arguments(student, teacher, *options)
    rows = student.new_empty((3, numbers[-1]), dtype=torch.float32)

    def run(config: Config) -> Tensor:
        programs = images * ceil_div(numbers[0], config["ROWS"])
        partial = student.new_empty(programs, dtype=torch.float32)
        kd_kl_fwd_kernel[(programs,)](
            student, teacher, student if index is None else index,
            rows if weight is None else weight, rows, partial, *numbers, **constants, **config
        )  # fmt: skip
        return partial.sum()

    configs = _configs(numbers[-1])
    return best("kd_kl_forward", _key(student, constants), configs, student.device, run), rows


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student)


@operator(_backward_fake)
def kd_kl_backward(
    student: Tensor, teacher: Tensor, rows: Tensor, upstream: Tensor,
    temperature: float, weight: Tensor | None, lo: int, hi: int, index: Tensor | None,
    standardize: bool, reverse: bool,
) -> Tensor:  # fmt: skip
    """The gradient of the student's logits, in their type and memory format."""
    options = (temperature, weight, lo, hi, index, standardize, reverse)
    images, numbers, constants = _arguments(student, teacher, *options)
    grad = torch.empty_like(student)

    def run(config: Config) -> Tensor:
        programs = images * ceil_div(numbers[0], config["ROWS"])
        kd_kl_bwd_kernel[(programs,)](
            student, teacher, student if index is None else index,
            rows if weight is None else weight, rows, upstream, grad, *numbers, **constants,
            **config
        )  # fmt: skip
        return grad

    configs = _configs(numbers[-1])
    return best("kd_kl_backward", _key(student, constants), configs, student.device, run)


def _configs(rows: int) -> Sequence[Config]:
    """The untuned default first: wide blocks of rows only where there are enough to fill a GPU."""
    return CONFIGS if shape_class(rows)[0] > 16384 else (*CONFIGS[1:], CONFIGS[0])


def _key(student: Tensor, constants: dict[str, Any]) -> tuple[object, ...]:
    rows = student.numel() // student.shape[1]
    return (student.dtype, *shape_class(rows), *constants.values())


class _KdKl(torch.autograd.Function):
    """Keeps the logits and 3 numbers a row; the backward pass reads the logits again."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, *options: Any) -> Tensor:
        loss, rows = kd_kl_forward(student, teacher, *options)
        temperature, weight, lo, hi, index, standardize, reverse = options
        ctx.save_for_backward(student, teacher, rows, weight, index)
        ctx.plain = (temperature, lo, hi, standardize, reverse)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        student, teacher, rows, weight, index = ctx.saved_tensors
        temperature, lo, hi, standardize, reverse = ctx.plain
        options = (temperature, weight, lo, hi, index, standardize, reverse)
        grad = kd_kl_backward(student, teacher, rows, upstream[0].contiguous(), *options)
        return (grad, *[None] * 8)


def _check(
    student: Tensor, teacher: Tensor, temperature: float, weight: Tensor | None,
    classes: tuple[int, int], index: Tensor | None,
) -> None:  # fmt: skip
    shape, theirs, count = tuple(student.shape), tuple(teacher.shape), student.shape[1]
    if (theirs if index is None else theirs[1:]) != shape:
        wanted = "the same, or with index one more dimension for the teachers"
        raise ValueError(f"logits differ: student {shape}, teacher {theirs}; {wanted}")
    check_pair(student, teacher, "logits")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, it must be above 0")
    if not 0 <= classes[0] < classes[1] <= count:
        raise ValueError(f"classes {classes} are no range within the student's {count}")
    rows = student.numel() // max(count, 1)
    for name, value, dtype in (("weight", weight, torch.float32), ("index", index, torch.int64)):
        if value is not None and (value.shape != (rows,) or value.dtype != dtype):
            found = f"{tuple(value.shape)} {value.dtype}"
            raise ValueError(f"{name} is {found}, the logits {shape} need ({rows},) {dtype}")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    pointer, number = POINTER[dtype], "*fp32"
    common = {"student": pointer, "teacher": pointer, "index": "*i64", "weight": number}
    plain = {"P": "i32", "T": "fp32", "factor": "fp32", "stride": "i64", "rows": "i64"}
    variants = [(False, False, False), (True, False, False), (False, True, True)]
    found = []
    for config in CONFIGS:
        for dense_head, std, full in variants:
            constants = {
                "LAST_S": not dense_head, "LAST_T": not dense_head, "INDEXED": full,
                "WEIGHTED": full, "STD": std, "REVERSE": full, "EPS": EPS,
                "ROWS": config["ROWS"], "CLASSES": config["CLASSES"], "C": 150,
                "lo": 5 * full, "width": 150 - 10 * full,
            }  # fmt: skip
            launch = {n: config[n] for n in ("num_warps", "num_stages")}
            label = f"{'dense' if dense_head else 'rows'}{' options' if full else ''}"
            quick = config is CONFIGS[0] and not dense_head and not std
            forward = common | {"rows_out": number, "partial": number} | plain
            backward = common | {"rows_in": number, "upstream": number, "grad": pointer} | plain
            found += [
                Compilation(kd_kl_fwd_kernel, forward, constants, launch, label, quick),
                Compilation(kd_kl_bwd_kernel, backward, constants, launch, label, quick),
            ]
    return found


def _case(rows: int, classes: int, device: torch.device, dtype: torch.dtype) -> Case:
    student = torch.randn(rows, classes, device=device, dtype=dtype).requires_grad_()
    teacher = torch.randn(rows, classes, device=device, dtype=dtype)
    options = (4.0, None, 0, classes, None, False, False)
    return Case(
        kernel=lambda: kd_kl(student, teacher, 4.0),
        reference=lambda: kd_kl_reference(student, teacher, *options),
        leaves=[student],
        floor_bytes=5 * student.numel() * student.element_size(),
    )


KERNEL = Kernel(
    name="kd_kl",
    formula="T^2 / rows * sum_rows w KL(softmax(t / T) || softmax(s / T))",
    traffic="forward: both logits read; backward: both read again, the gradient written",
    compilations=_compilations,
    settings=[
        Setting(
            "221184 x 150",
            lambda device, dtype, _: _case(221_184, 150, device, dtype),
            reach_ms={torch.float16: 0.15},
        ),
        Setting(
            "4096 x 1000",
            lambda device, dtype, _: _case(4096, 1000, device, dtype),
            reach_ms={torch.float16: 0.025},
            graph=True,
        ),
    ],
)
