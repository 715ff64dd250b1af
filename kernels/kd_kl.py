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
from typing import Any, no_type_check

import torch
from torch import Tensor

from kdcompile.kernels._maps import (
    ceil_div,
    check_finite,
    check_pair,
    dense,
    is_last,
    offsets,
    walk,
)
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, jit, tl, use_triton
from kdcompile.kernels._tune import Config, best, shape_class

EPS = 1e-6  # least standard deviation of a row
CONFIGS: Sequence[Config] = (
    {"ROWS": 16, "CLASSES": 64, "num_warps": 4, "num_stages": 2},
    {"ROWS": 4, "CLASSES": 256, "num_warps": 4, "num_stages": 2},
    {"ROWS": 8, "CLASSES": 256, "num_warps": 8, "num_stages": 1},
    {"ROWS": 32, "CLASSES": 32, "num_warps": 4, "num_stages": 2},
    {"ROWS": 64, "CLASSES": 32, "num_warps": 8, "num_stages": 2},
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
        check: refuse values that are not finite; waits for the device.

    A logit of -inf has probability 0. Deterministic. No row, no loss: 0.

    Raises:
        ValueError: student and teacher do not fit each other, or an option does not fit them.
    """
    lo, hi = classes or (0, student.shape[1])
    _check(student, teacher, temperature, weight, (lo, hi), index)
    if check:
        check_finite(student, teacher, "logits")
    if student.numel() == 0:
        return student.float().sum()
    options = (temperature, weight, lo, hi, index, standardize, reverse)
    if not use_triton("kd_kl", student, teacher):
        return kd_kl_reference(student, teacher, *options)
    theirs = dense(teacher) if index is None else teacher.contiguous()
    loss: Tensor = _KdKl.apply(dense(student), theirs, *options)  # type: ignore[no-untyped-call]
    return loss


def kd_kl_reference(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    weight: Tensor | None,
    lo: int,
    hi: int,
    index: Tensor | None,
    standardize: bool,
    reverse: bool,
) -> Tensor:
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


@jit
@no_type_check
def _tile(
    pointer, image, pixel, start, lo, width, C, P, valid, LAST: tl.constexpr, CLASSES: tl.constexpr
):
    """Classes start, start + 1, ... of the range for a block of rows; -inf beyond it."""
    k = start + tl.arange(0, CLASSES)
    place = offsets(image, (lo + k)[None, :], pixel[:, None], C, P, LAST)
    inside = ((k >= 0) & (k < width))[None, :]
    x = tl.load(pointer + place, valid[:, None] & inside, 0.0).to(tl.float32)
    return tl.where(inside, x, float("-inf")), inside  # rows beyond the last are zeros


@jit
@no_type_check
def _scale(
    pointer, image, pixel, lo, width, C, P, T, valid,
    LAST: tl.constexpr, STD: tl.constexpr, EPS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Mean of each row and its factor 1 / (T sigma); 0 and 1 / T unless STD."""
    mean = tl.zeros_like(valid.to(tl.float32))
    scale = mean + 1.0 / T
    if STD:
        for start in range(0, width, CLASSES):
            x, mask = _tile(pointer, image, pixel, start, lo, width, C, P, valid, LAST, CLASSES)
            mean += tl.sum(tl.where(mask, x, 0.0), 1)
        mean = mean / width
        square = tl.zeros_like(mean)
        for start in range(0, width, CLASSES):
            x, mask = _tile(pointer, image, pixel, start, lo, width, C, P, valid, LAST, CLASSES)
            gap = tl.where(mask, x, mean[:, None]) - mean[:, None]
            square += tl.sum(gap * gap, 1)
        variance = square / tl.maximum(width - 1, 1)
        scale = 1.0 / (T * tl.sqrt(tl.maximum(variance, EPS * EPS)))
    return mean, scale


@jit
@no_type_check
def _grow(top, total, u):
    """One step of an online softmax: the new maximum (finite), sum, weights and correction."""
    higher = tl.maximum(top, tl.max(u, 1))
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp(u - safe[:, None])
    shrink = tl.exp(top - safe)
    return higher, total * shrink + tl.sum(weights, 1), weights, shrink


@jit
@no_type_check
def _kd_kl_fwd_kernel(
    student,  # [N, C, P] in either memory format
    teacher,  # [M, N, C, P]
    index,  # [N * P] int64, or anything where INDEXED is False
    weight,  # [N * P] float32, or anything where WEIGHTED is False
    rows_out,  # [3, N * P] float32: log-sum-exp of u and of v, and the KL
    partial,  # [programs] float32
    C, P, lo, width, T, factor, stride, rows,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr,
    STD: tl.constexpr, REVERSE: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(P, ROWS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    valid = pixel < P
    row = image * P + pixel
    theirs = tl.zeros([ROWS], tl.int64)
    if INDEXED:
        theirs = tl.load(index + row, valid, 0) * stride
    own_teacher = teacher + theirs[:, None]
    mean_s, scale_s = _scale(
        student, image, pixel, lo, width, C, P, T, valid, LAST_S, STD, EPS, CLASSES
    )
    mean_t, scale_t = _scale(
        own_teacher, image, pixel, lo, width, C, P, T, valid, LAST_T, STD, EPS, CLASSES
    )
    top_s = tl.full([ROWS], float("-inf"), tl.float32)
    top_t = tl.full([ROWS], float("-inf"), tl.float32)
    sum_s = tl.zeros([ROWS], tl.float32)
    sum_t = tl.zeros([ROWS], tl.float32)
    cross = tl.zeros([ROWS], tl.float32)  # sum of weight * (u - v), or of weight * (v - u)
    for start in range(0, width, CLASSES):
        s, _ = _tile(student, image, pixel, start, lo, width, C, P, valid, LAST_S, CLASSES)
        t, _ = _tile(own_teacher, image, pixel, start, lo, width, C, P, valid, LAST_T, CLASSES)
        u, v = (s - mean_s[:, None]) * scale_s[:, None], (t - mean_t[:, None]) * scale_t[:, None]
        top_s, sum_s, p, shrink_s = _grow(top_s, sum_s, u)
        top_t, sum_t, q, shrink_t = _grow(top_t, sum_t, v)
        used = (p if REVERSE else q) > 0
        gap = tl.where(used, u, 0.0) - tl.where(used, v, 0.0)
        if REVERSE:
            cross = cross * shrink_s + tl.sum(p * gap, 1)
        else:
            cross = cross * shrink_t - tl.sum(q * gap, 1)
    lse_s, lse_t = tl.log(sum_s) + top_s, tl.log(sum_t) + top_t
    kl = cross / sum_s - lse_s + lse_t if REVERSE else cross / sum_t + lse_s - lse_t
    tl.store(rows_out + row, lse_s, valid)
    tl.store(rows_out + rows + row, lse_t, valid)
    tl.store(rows_out + 2 * rows + row, kl, valid)
    if WEIGHTED:
        kl = kl * tl.load(weight + row, valid, 0.0)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(valid, kl, 0.0), 0) * factor)


@jit
@no_type_check
def _gradient(s, t, mean_s, scale_s, mean_t, scale_t, lse_s, lse_t, kl, REVERSE: tl.constexpr):
    """d KL / d u at a tile."""
    u, v = (s - mean_s[:, None]) * scale_s[:, None], (t - mean_t[:, None]) * scale_t[:, None]
    p, q = tl.exp(u - lse_s[:, None]), tl.exp(v - lse_t[:, None])
    if REVERSE:
        gap = tl.where(p > 0, u, 0.0) - tl.where(p > 0, v, 0.0)
        return p * (gap - (lse_s - lse_t + kl)[:, None])
    return p - q


@jit
@no_type_check
def _kd_kl_bwd_kernel(
    student, teacher, index, weight, rows_in, upstream, grad,
    C, P, lo, width, T, factor, stride, rows,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, INDEXED: tl.constexpr, WEIGHTED: tl.constexpr,
    STD: tl.constexpr, REVERSE: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(P, ROWS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    pixel = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    valid = pixel < P
    row = image * P + pixel
    theirs = tl.zeros([ROWS], tl.int64)
    if INDEXED:
        theirs = tl.load(index + row, valid, 0) * stride
    own_teacher = teacher + theirs[:, None]
    mean_s, scale_s = _scale(
        student, image, pixel, lo, width, C, P, T, valid, LAST_S, STD, EPS, CLASSES
    )
    mean_t, scale_t = _scale(
        own_teacher, image, pixel, lo, width, C, P, T, valid, LAST_T, STD, EPS, CLASSES
    )
    lse_s = tl.load(rows_in + row, valid, 0.0)
    lse_t = tl.load(rows_in + rows + row, valid, 0.0)
    kl = tl.load(rows_in + 2 * rows + row, valid, 0.0)
    outer = tl.load(upstream) * factor + tl.zeros([ROWS], tl.float32)
    if WEIGHTED:
        outer = outer * tl.load(weight + row, valid, 0.0)
    pull = tl.zeros([ROWS], tl.float32)  # through sigma: sum of d KL / d u * (s - mean)
    if STD:
        for start in range(0, width, CLASSES):
            s, mask = _tile(student, image, pixel, start, lo, width, C, P, valid, LAST_S, CLASSES)
            t, _ = _tile(own_teacher, image, pixel, start, lo, width, C, P, valid, LAST_T, CLASSES)
            g = _gradient(s, t, mean_s, scale_s, mean_t, scale_t, lse_s, lse_t, kl, REVERSE)
            pull += tl.sum(g * tl.where(mask, s - mean_s[:, None], 0.0), 1)
        inverse = scale_s * T
        pull = tl.where(inverse * EPS < 1, pull * inverse * inverse / tl.maximum(width - 1, 1), 0.0)
    for start in range(0, C, CLASSES):
        k = start + tl.arange(0, CLASSES)
        s, _ = _tile(student, image, pixel, start - lo, lo, width, C, P, valid, LAST_S, CLASSES)
        t, _ = _tile(own_teacher, image, pixel, start - lo, lo, width, C, P, valid, LAST_T, CLASSES)
        g = _gradient(s, t, mean_s, scale_s, mean_t, scale_t, lse_s, lse_t, kl, REVERSE)
        inside = ((k >= lo) & (k < lo + width))[None, :]
        if STD:
            g = g - tl.where(inside, s - mean_s[:, None], 0.0) * pull[:, None]
        g = tl.where(inside, g * (outer * scale_s)[:, None], 0.0)
        place = offsets(image, k[None, :], pixel[:, None], C, P, LAST_S)
        tl.store(grad + place, g.to(grad.dtype.element_ty), valid[:, None] & (k < C)[None, :])


def _constants(
    student: Tensor,
    teacher: Tensor,
    index: Tensor | None,
    weight: Tensor | None,
    standardize: bool,
    reverse: bool,
) -> dict[str, Any]:
    one = teacher if index is None else teacher[0]
    return {
        "LAST_S": is_last(student),
        "LAST_T": is_last(one),
        "INDEXED": index is not None,
        "WEIGHTED": weight is not None,
        "STD": standardize,
        "REVERSE": reverse,
        "EPS": EPS,
    }


def _numbers(
    student: Tensor, teacher: Tensor, index: Tensor | None, lo: int, hi: int, temperature: float
) -> tuple[int, tuple[Any, ...]]:
    """Images, and the kernels' plain arguments from C to rows."""
    images, pixels = walk(student, teacher if index is None else teacher[0])
    rows = images * pixels
    factor = temperature**2 / rows
    numbers = (student.shape[1], pixels, lo, hi - lo, temperature, factor, student.numel(), rows)
    return images, numbers


def _forward_fake(student: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = student.numel() // student.shape[1]
    return (
        student.new_empty((), dtype=torch.float32),
        student.new_empty((3, rows), dtype=torch.float32),
    )


@operator(_forward_fake)
def kd_kl_forward(
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    weight: Tensor | None,
    lo: int,
    hi: int,
    index: Tensor | None,
    standardize: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and [3, R]: log-sum-exp of u and v and the KL of each row."""
    images, numbers = _numbers(student, teacher, index, lo, hi, temperature)
    constants = _constants(student, teacher, index, weight, standardize, reverse)
    rows = student.new_empty((3, numbers[-1]), dtype=torch.float32)

    def run(config: Config) -> Tensor:
        programs = images * ceil_div(numbers[1], config["ROWS"])
        partial = student.new_empty(programs, dtype=torch.float32)
        _kd_kl_fwd_kernel[(programs,)](
            student, teacher, student if index is None else index,
            rows if weight is None else weight, rows, partial, *numbers, **constants, **config
        )  # fmt: skip
        return partial.sum()

    return best("kd_kl_forward", _key(student, constants), CONFIGS, student.device, run), rows


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student)


@operator(_backward_fake)
def kd_kl_backward(
    student: Tensor,
    teacher: Tensor,
    rows: Tensor,
    upstream: Tensor,
    temperature: float,
    weight: Tensor | None,
    lo: int,
    hi: int,
    index: Tensor | None,
    standardize: bool,
    reverse: bool,
) -> Tensor:
    """The gradient of the student's logits, in their type and memory format."""
    images, numbers = _numbers(student, teacher, index, lo, hi, temperature)
    constants = _constants(student, teacher, index, weight, standardize, reverse)
    grad = torch.empty_like(student)

    def run(config: Config) -> Tensor:
        programs = images * ceil_div(numbers[1], config["ROWS"])
        _kd_kl_bwd_kernel[(programs,)](
            student, teacher, student if index is None else index,
            rows if weight is None else weight, rows, upstream, grad, *numbers, **constants,
            **config
        )  # fmt: skip
        return grad

    return best("kd_kl_backward", _key(student, constants), CONFIGS, student.device, run)


def _key(student: Tensor, constants: dict[str, Any]) -> tuple[object, ...]:
    rows, classes = student.numel() // student.shape[1], student.shape[1]
    return (student.dtype, *shape_class(rows), classes, *constants.values())


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
    student: Tensor,
    teacher: Tensor,
    temperature: float,
    weight: Tensor | None,
    classes: tuple[int, int],
    index: Tensor | None,
) -> None:
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
    plain = dict.fromkeys(("C", "P", "lo", "width"), "i32") | {
        "T": "fp32", "factor": "fp32", "stride": "i64", "rows": "i64"
    }  # fmt: skip
    variants = [(False, False, False), (True, False, False), (False, True, True)]
    found = []
    for config in CONFIGS:
        for dense_head, std, full in variants:
            constants = {
                "LAST_S": not dense_head, "LAST_T": not dense_head, "INDEXED": full,
                "WEIGHTED": full, "STD": std, "REVERSE": full, "EPS": EPS,
                "ROWS": config["ROWS"], "CLASSES": config["CLASSES"],
            }  # fmt: skip
            launch = {n: config[n] for n in ("num_warps", "num_stages")}
            label = f"{'dense' if dense_head else 'rows'}{' options' if full else ''}"
            quick = config is CONFIGS[0] and not dense_head and not std
            forward = common | {"rows_out": number, "partial": number} | plain
            backward = common | {"rows_in": number, "upstream": number, "grad": pointer} | plain
            found += [
                Compilation(_kd_kl_fwd_kernel, forward, constants, launch, label, quick),
                Compilation(_kd_kl_bwd_kernel, backward, constants, launch, label, quick),
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
