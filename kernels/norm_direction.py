r"""Norm and direction of the embedding (KD++, arXiv 2305.17007), row by row.

For a row of student features f, teacher features g and label y, with c_y the mean of the teacher's
features over the training examples of class y:

    loss = 1 / B * sum_rows 1 - <f, c_y> / (|c_y| max(|f|, |g|))

While f is no longer than g, the gradient is along -c_y: it pulls f in the class's direction and
lengthens it. Beyond, it is the cosine's: it turns f only.
"""

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
from torch import Tensor

from kdcompile.kernels._maps import ceil_div, check_finite, check_shapes
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, jit, tl, use_triton
from kdcompile.kernels._tune import Config, best, shape_class

CONFIGS: Sequence[Config] = (
    {"ROWS": 4, "WIDTH": 256, "num_warps": 4, "num_stages": 2},
    {"ROWS": 1, "WIDTH": 2048, "num_warps": 8, "num_stages": 2},
    {"ROWS": 2, "WIDTH": 512, "num_warps": 2, "num_stages": 2},
    {"ROWS": 8, "WIDTH": 256, "num_warps": 8, "num_stages": 2},
    {"ROWS": 16, "WIDTH": 64, "num_warps": 4, "num_stages": 2},
)


def norm_direction(
    student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor, *, check: bool = False
) -> Tensor:
    """The ND loss, a float32 scalar.

    Args:
        student: features [B, d].
        teacher: the same shape. No gradient flows to it.
        means: [K, d], the mean of the teacher's features of each class, in any floating type. No
            gradient flows to it.
        labels: int64 [B]. A row whose label is not within 0 to K - 1 has loss 0 and no gradient;
            the mean counts it.
        check: refuse such labels and values that are not finite; waits for the device.

    Where |f| = |g|, the gradient is that of |f| < |g|. A row or a class mean of zeros has loss 1;
    it has no gradient if the mean is zero, or if f and g are. Deterministic. No row, no loss: 0.

    Raises:
        ValueError: the tensors do not fit each other.
    """
    _check(student, teacher, means, labels)
    if check:
        _check_values(student, teacher, means, labels)
    if student.numel() == 0:
        return student.float().sum()
    if not use_triton("norm_direction", student, teacher, means):
        return norm_direction_reference(student, teacher, means, labels)
    rows = [t.contiguous() for t in (student, teacher, means, labels)]
    loss: Tensor = _NormDirection.apply(*rows)  # type: ignore[no-untyped-call]
    return loss


def norm_direction_reference(
    student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor
) -> Tensor:
    """Plain PyTorch; the arguments of `norm_direction`."""
    with full_precision(student):
        kind = torch.float64 if student.dtype == torch.float64 else torch.float32
        f, g = student.to(kind), teacher.detach().to(kind)
        known = (labels >= 0) & (labels < len(means))
        c = means.detach()[torch.where(known, labels, 0)].to(kind)
        own, theirs, squared = (t.square().sum(1) for t in (f, g, c))
        longer = torch.where(own > theirs, own, theirs)
        defined = (longer > 0) & (squared > 0)
        lengths = [torch.where(defined, square, 1).sqrt() for square in (longer, squared)]
        cosine = (f * c).sum(1) / lengths[0] / lengths[1]
        rows = 1 - torch.where(defined, cosine, 0)
        return torch.where(known, rows, 0).mean()


@jit
@no_type_check
def _label(labels, row, valid, K):
    """Class of each row, 0 where there is none, and whether there is one."""
    label = tl.load(labels + row, valid, -1)
    known = (label >= 0) & (label < K)
    return tl.where(known, label, 0), known


@jit
@no_type_check
def _norm_direction_fwd_kernel(
    student,  # [B, d]
    teacher,  # [B, d]
    means,  # [K, d]
    labels,  # [B] int64
    pull,  # [2, B] float32: the gradient of a row is pull[0] c + pull[1] f
    partial,  # [programs] float32
    B, d, K, factor,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < B
    label, known = _label(labels, row, valid, K)
    own = tl.zeros([ROWS, WIDTH], tl.float32)
    theirs = tl.zeros([ROWS, WIDTH], tl.float32)
    squared = tl.zeros([ROWS, WIDTH], tl.float32)
    product = tl.zeros([ROWS, WIDTH], tl.float32)
    for start in range(0, d, WIDTH):
        k = (start + tl.arange(0, WIDTH))[None, :]
        inside = known[:, None] & (k < d)
        f = tl.load(student + row[:, None] * d + k, inside, 0.0).to(tl.float32)
        g = tl.load(teacher + row[:, None] * d + k, inside, 0.0).to(tl.float32)
        c = tl.load(means + label[:, None] * d + k, inside, 0.0).to(tl.float32)
        own += f * f
        theirs += g * g
        squared += c * c
        product += f * c
    a, b = tl.sqrt(tl.sum(own, 1)), tl.sqrt(tl.sum(theirs, 1))
    length = tl.maximum(a, b) * tl.sqrt(tl.sum(squared, 1))
    defined = length > 0
    inverse = tl.where(defined, 1.0 / tl.where(defined, length, 1.0), 0.0)
    cosine = tl.sum(product, 1) * inverse
    outside = a > b
    turn = tl.where(outside, cosine / tl.where(outside, a, 1.0), 0.0)
    tl.store(pull + row, -inverse * factor, valid)
    tl.store(pull + B + row, turn / tl.where(outside, a, 1.0) * factor, valid)
    loss = tl.where(known, 1.0 - cosine, 0.0)
    tl.store(partial + tl.program_id(0), tl.sum(loss, 0) * factor)


@jit
@no_type_check
def _norm_direction_bwd_kernel(
    student, means, labels, pull,
    upstream,  # float32 scalar
    grad,  # [B, d]
    B, d, K,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < B
    label, _ = _label(labels, row, valid, K)
    outer = tl.load(upstream)
    along = tl.load(pull + row, valid, 0.0) * outer
    turn = tl.load(pull + B + row, valid, 0.0) * outer
    for start in range(0, d, WIDTH):
        k = (start + tl.arange(0, WIDTH))[None, :]
        place, inside = row[:, None] * d + k, valid[:, None] & (k < d)
        # what takes no part is not read: f of a row that is not the longer, unknown classes
        f = tl.load(student + place, inside & (turn != 0)[:, None], 0.0).to(tl.float32)
        used = inside & (along != 0)[:, None]
        c = tl.load(means + label[:, None] * d + k, used, 0.0).to(tl.float32)
        g = along[:, None] * c + turn[:, None] * f
        tl.store(grad + place, g.to(grad.dtype.element_ty), inside)


def _key(student: Tensor, means: Tensor) -> tuple[object, ...]:
    return (student.dtype, means.dtype, *shape_class(*student.shape))


def _forward_fake(student: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return (
        student.new_empty((), dtype=torch.float32),
        student.new_empty((2, len(student)), dtype=torch.float32),
    )


@operator(_forward_fake)
def norm_direction_forward(
    student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss, and [2, B]: shares of the class mean and of the row itself in its gradient."""
    batch, width = student.shape
    pull = student.new_empty((2, batch), dtype=torch.float32)

    def run(config: Config) -> Tensor:
        programs = ceil_div(batch, config["ROWS"])
        partial = student.new_empty(programs, dtype=torch.float32)
        _norm_direction_fwd_kernel[(programs,)](
            student, teacher, means, labels, pull, partial, batch, width, len(means), 1 / batch,
            **config,
        )  # fmt: skip
        return partial.sum()

    key = _key(student, means)
    return best("norm_direction_forward", key, CONFIGS, student.device, run), pull


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student)


@operator(_backward_fake)
def norm_direction_backward(
    student: Tensor, means: Tensor, labels: Tensor, pull: Tensor, upstream: Tensor
) -> Tensor:
    """The gradient of the student's features, in their type."""
    batch, width = student.shape
    grad = torch.empty_like(student)

    def run(config: Config) -> Tensor:
        _norm_direction_bwd_kernel[(ceil_div(batch, config["ROWS"]),)](
            student, means, labels, pull, upstream, grad, batch, width, len(means), **config
        )
        return grad

    return best("norm_direction_backward", _key(student, means), CONFIGS, student.device, run)


class _NormDirection(torch.autograd.Function):
    """Keeps the student's rows and 2 numbers a row; the teacher is read once."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor
    ) -> Tensor:
        loss, pull = norm_direction_forward(student, teacher, means, labels)
        ctx.save_for_backward(student, means, labels, pull)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad = norm_direction_backward(*ctx.saved_tensors, upstream[0].contiguous())
        return grad, None, None, None


def _check(student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor) -> None:
    check_shapes(student, teacher, "features")
    shape = tuple(student.shape)
    if student.dim() != 2:
        raise ValueError(f"features must be [B, d]: student {shape}, teacher {shape}")
    for name, value, wanted in (("means", means, ("K", shape[1])), ("labels", labels, shape[:1])):
        if value.device != student.device:
            where = f"student on {student.device}, {name} on {value.device}"
            raise ValueError(f"features lie apart: {where}")
        fits = value.dim() == len(wanted) and value.shape[-1] == wanted[-1]
        if not fits or (name == "means" and len(means) == 0):
            found = f"{name} are {tuple(value.shape)}"
            raise ValueError(f"{found}, the student's features {shape} need {list(wanted)}")
    if not means.is_floating_point() or means.requires_grad:
        kind = f"{means.dtype}{', with a gradient' * means.requires_grad}"
        raise ValueError(
            f"means are {kind}: the student's {student.dtype} need constant, floating ones"
        )
    if labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype}, the student's rows need torch.int64")


def _check_values(student: Tensor, teacher: Tensor, means: Tensor, labels: Tensor) -> None:
    check_finite(student, teacher, "features")
    if not bool(torch.isfinite(means).all()):
        raise ValueError(f"means {tuple(means.shape)} hold values that are not finite")
    if labels.numel() and (int(labels.min()) < 0 or int(labels.max()) >= len(means)):
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"labels run from {found}, the means have {len(means)} classes")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    pointer, number = POINTER[dtype], "*fp32"
    common = {"student": pointer, "means": number, "labels": "*i64", "pull": number}
    plain = dict.fromkeys(("B", "d", "K"), "i32")
    forward = common | plain | {"teacher": pointer, "partial": number, "factor": "fp32"}
    backward = common | plain | {"upstream": number, "grad": pointer}
    found = []
    for config in CONFIGS:
        constants = {name: config[name] for name in ("ROWS", "WIDTH")}
        launch = {name: config[name] for name in ("num_warps", "num_stages")}
        label, quick = "x".join(map(str, constants.values())), config is CONFIGS[0]
        found += [
            Compilation(_norm_direction_fwd_kernel, forward, constants, launch, label, quick),
            Compilation(_norm_direction_bwd_kernel, backward, constants, launch, label, quick),
        ]
    return found


def _case(rows: int, width: int, device: torch.device, dtype: torch.dtype) -> Case:
    student = torch.randn(rows, width, device=device, dtype=dtype).requires_grad_()
    teacher = torch.randn(rows, width, device=device, dtype=dtype)
    means = torch.randn(1000, width, device=device)
    labels = torch.randint(1000, (rows,), device=device)
    maps = 3.5 * student.numel() * student.element_size()  # half of the rows are read again
    tables = 2 * (min(rows, 1000) * width * means.element_size() + labels.numel() * 8)
    return Case(
        kernel=lambda: norm_direction(student, teacher, means, labels),
        reference=lambda: norm_direction_reference(student, teacher, means, labels),
        leaves=[student],
        floor_bytes=int(maps) + tables,
    )


KERNEL = Kernel(
    name="norm_direction",
    formula="1 / B * sum_rows 1 - <f, c_y> / (|c_y| max(|f|, |g|))",
    traffic=(
        "forward: f, g and the class means read, 2 numbers a row written; backward: the means,"
        " and f of the rows longer than g, read, the gradient written"
    ),
    compilations=_compilations,
    settings=[
        Setting("65536 x 2048", lambda device, dtype, _: _case(65_536, 2048, device, dtype)),
        Setting("256 x 512", lambda device, dtype, _: _case(256, 512, device, dtype), graph=True),
    ],
)
