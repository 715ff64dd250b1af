r"""Relations between the samples of a batch: SPKD, RKD (distances) and PKT.

With F the B samples' maps as rows, in each of the two networks, and G = F F^T [B, B]:

    spkd   A_ij = G_ij / |G_i|;  loss = sum_ij (A^T_ij - A^S_ij)^2 / B^2        Tung & Mori 2019
    rkd    d_ij = |f_i - f_j|, x_ij = d_ij / mean of the d > 0;
           loss = mean over i, j of SmoothL1(x^S_ij - x^T_ij), beta = 1         Park et al. 2019
    pkt    k_ij = (cos(f_i, f_j) + 1) / 2, p_ij = k_ij / sum_j k_ij;            Passalis & Tefas
           loss = mean over i, j of p^T_ij log((p^T_ij + e) / (p^S_ij + e))     2018; e = 1e-7

As published; torchdistill 1.1.5 takes the 1-norm of spkd's rows instead. Means are over all B x B
entries, the diagonal too. Not as there, a zero row stays zero, cosines with a zero sample are 0,
and a distance of 0 is 0 and has no gradient.

All come from Grams, in float32, of the products of the maps as they are. For distances the first
sample is subtracted from all (they do not change), so that a mean much larger than the deviations
cancels before it is squared; in 16 bits the difference is rounded to them. What is left: squared
distances are exact to about 1e-6 of the two samples' squared distances from the first, and below
that they count as 0.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from kdcompile.kernels._maps import ceil_div, check_finite, check_pair, dense, power_of_two
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._relation_maps import _batch_relation_bwd_kernel, _gram_parts_kernel
from kdcompile.kernels._relations import _pkt_kernel, _rkd_kernel, _spkd_kernel
from kdcompile.kernels._runtime import dot_precision, full_precision, use_triton
from kdcompile.kernels._tune import Config, best, shape_class

Relation = Literal["spkd", "rkd", "pkt"]
TINY = 1e-30  # a squared length, or a row of the Gram, no larger than this counts as zero
NOISE = 1e-6  # so does a squared distance, relative to the squared lengths
EPS = 1e-7  # pkt's
ONE_TILE, MANY_TILES = 64, 32  # samples a tile
ALIGNED = 16  # a number of elements divisible by this can be loaded in vectors
CONFIGS: Sequence[Config] = (
    {"COLS": 64, "PROGRAMS": 528, "num_warps": 4, "num_stages": 4},
    {"COLS": 64, "PROGRAMS": 264, "num_warps": 4, "num_stages": 4},
    {"COLS": 128, "PROGRAMS": 528, "num_warps": 8, "num_stages": 2},
    {"COLS": 64, "PROGRAMS": 1056, "num_warps": 4, "num_stages": 3},
)
MANY: Sequence[Config] = (  # for more samples than one tile holds
    {"COLS": 64, "PROGRAMS": 264, "num_warps": 4, "num_stages": 2},
    {"COLS": 64, "PROGRAMS": 528, "num_warps": 4, "num_stages": 3},
)


def batch_relation(
    student: Tensor, teacher: Tensor, kind: Relation = "spkd", *, check: bool = False
) -> Tensor:
    """The relation loss of a batch, a float32 scalar.

    Args:
        student: [B, ...]; any shape, of which only the number of elements matters.
        teacher: [B, ...], which may have other elements; no gradient flows to it.
        kind: "spkd", "rkd" or "pkt".
        check: refuse values that are not finite; waits for the device.

    The order of a sample's elements does not matter, so neither memory format is copied. Made for
    up to 64 samples, of which every map is read once; beyond that tiles of 32 read each other's
    samples again, and the relation is still worked out by a single block of threads.
    The upstream gradient is applied in float32, so scaling the loss saves what float16 gradients
    (of means over B^2 pairs) would lose below 6e-8. Deterministic. No sample, or samples without
    elements: 0.

    Raises:
        ValueError: student and teacher do not fit each other, or `kind` is unknown.
    """
    _check(student, teacher, kind)
    if check:
        check_finite(student, teacher)
    if student.numel() == 0 or teacher.numel() == 0:
        return student.flatten()[:0].float().sum()
    alone = "one sample has no relation" if len(student) == 1 else None
    if not use_triton("batch_relation", student, teacher, unless=alone):
        return batch_relation_reference(student, teacher, kind)
    loss: Tensor = _BatchRelation.apply(  # type: ignore[no-untyped-call]
        dense(student), dense(teacher), kind
    )
    return loss


def batch_relation_reference(student: Tensor, teacher: Tensor, kind: Relation = "spkd") -> Tensor:
    """Plain PyTorch; the arguments of `batch_relation`."""
    with full_precision(student):
        a, b = _relation(student, kind), _relation(teacher.detach(), kind)
        if kind == "spkd":
            return (b - a).square().mean()
        if kind == "rkd":
            return smooth_l1_loss(a, b)
        return (b * ((b + EPS) / (a + EPS)).log()).mean()


def _relation(maps: Tensor, kind: Relation) -> Tensor:
    """The [B, B] matrix that is compared."""
    f = (maps if maps.dtype == torch.float64 else maps.float()).flatten(1)
    if kind == "rkd":
        f = f - f[:1]
    gram = f @ f.mT
    size = gram.diagonal()
    if kind == "rkd":
        sizes = size[:, None] + size[None, :]
        square = sizes - 2 * gram
        far = square > NOISE * sizes
        distance = square.masked_fill(~far, 1).sqrt().masked_fill(~far, 0)
        return distance / (distance.sum() / far.sum().clamp_min(1)).clamp_min(TINY)
    if kind == "spkd":
        top = gram.detach().abs().amax(1, keepdim=True)
        unit = gram / top.clamp_min(TINY)
        length = unit.square().sum(1, keepdim=True).masked_fill(top <= TINY, 1).sqrt()
        return (unit / length).masked_fill(top <= TINY, 0)
    inverse = size.masked_fill(size <= TINY, 1).rsqrt().masked_fill(size <= TINY, 0)
    kernel = 0.5 + 0.5 * (gram * inverse[:, None] * inverse[None, :]).clamp(-1, 1)
    return kernel / kernel.sum(1, keepdim=True)


def _constants(batch: int, kind: str, unit: int) -> dict[str, Any]:
    """What the kernels that walk over maps share, but for the block sizes."""
    one = batch <= ONE_TILE
    return {
        "CENTRE": kind == "rkd", "ONE": one, "PRECISION": dot_precision(), "UNIT": unit,
        "ROWS": power_of_two(batch, 16) if one else MANY_TILES,
    }  # fmt: skip


def _unit(*elements: int) -> int:
    return 1 if any(count % ALIGNED for count in elements) else ALIGNED


def _launch(config: Config, dtype: torch.dtype, unit: int) -> dict[str, int]:
    """Elements a block holds: fewer of float32, and of what is loaded one by one."""
    share = 4 * (2 if unit == 1 else 1) if dtype == torch.float32 else 4 if unit == 1 else 1
    cols = max(16, config["COLS"] // share)
    return {"COLS": cols, "num_warps": config["num_warps"], "num_stages": config["num_stages"]}


def _configs(batch: int) -> Sequence[Config]:
    return CONFIGS if batch <= ONE_TILE else MANY


def _relate(kind: str, batch: int) -> tuple[Any, dict[str, Any]]:
    """The kernel of a relation and its constants: whole rows, 4096 entries at a time."""
    cols = power_of_two(batch)
    block = {"ROWS": max(1, min(power_of_two(batch), 4096 // cols)), "COLS": cols, "num_warps": 8}
    if kind == "spkd":
        return _spkd_kernel, block | {"TINY": TINY}
    if kind == "rkd":
        return _rkd_kernel, block | {"NOISE": NOISE}
    return _pkt_kernel, block | {"TINY": TINY, "EPS": EPS}


def _forward_fake(student: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, numbers = len(student), {"dtype": torch.float32}
    shapes: tuple[tuple[int, ...], ...] = ((), (batch, batch), (batch,))
    loss, pull, peak = (student.new_empty(shape, **numbers) for shape in shapes)  # type: ignore[call-overload]
    return loss, pull, peak


@operator(_forward_fake)
def batch_relation_forward(
    student: Tensor, teacher: Tensor, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and the gradient's matrix: rows of [B, B] up to 1, and each row's factor [B]."""
    batch, ours, theirs = len(student), student[0].numel(), teacher[0].numel()
    unit = _unit(ours, theirs)
    constants = _constants(batch, kind, unit)
    tiles = ceil_div(batch, constants["ROWS"])

    def run(config: Config) -> Tensor:
        launch = _launch(config, student.dtype, unit)
        splits = max(1, min(config["PROGRAMS"], ceil_div(max(ours, theirs), launch["COLS"])))
        parts = student.new_empty((2, splits, batch, batch), dtype=torch.float32)
        _gram_parts_kernel[(2 * splits * tiles**2,)](
            student, teacher, parts, batch, ours // unit, theirs // unit, splits,
            **constants, **launch,
        )  # fmt: skip
        return parts.sum(1)

    key = (student.dtype, *constants.values(), *shape_class(batch, ours, theirs))
    grams = best("batch_relation_forward", key, _configs(batch), student.device, run)
    loss, pull, peak = _forward_fake(student)
    kept = grams.new_empty((3, batch))
    relate, block = _relate(kind, batch)
    relate[(1,)](grams, loss, pull, peak, kept, batch, **block)
    return loss, pull, peak


def _backward_fake(student: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(student)


@operator(_backward_fake)
def batch_relation_backward(
    student: Tensor, pull: Tensor, peak: Tensor, upstream: Tensor, kind: str
) -> Tensor:
    """The gradient of the student's maps, in their type and memory format."""
    batch, elements = len(student), student[0].numel()
    unit, half = _unit(elements), student.dtype != torch.float32
    constants, grad = _constants(batch, kind, unit), torch.empty_like(student)
    tiles = ceil_div(batch, constants["ROWS"])

    def run(config: Config) -> Tensor:
        launch = _launch(config, student.dtype, unit)
        workers = min(2 * config["PROGRAMS"], ceil_div(elements, launch["COLS"]))
        _batch_relation_bwd_kernel[(tiles * workers,)](
            student, pull, peak, upstream, grad, batch, elements // unit, workers,
            HALF=half, **constants, **launch,
        )  # fmt: skip
        return grad

    key = (student.dtype, *constants.values(), *shape_class(batch, elements))
    return best("batch_relation_backward", key, _configs(batch), student.device, run)


class _BatchRelation(torch.autograd.Function):
    """Keeps the student's maps and a [B, B] matrix; the backward pass reads the maps again."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, kind: str) -> Tensor:
        loss, pull, peak = batch_relation_forward(student, teacher, kind)
        ctx.save_for_backward(student, pull, peak)
        ctx.kind = kind
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        outer = upstream[0].contiguous()
        return batch_relation_backward(*ctx.saved_tensors, outer, ctx.kind), None, None


def _check(student: Tensor, teacher: Tensor, kind: str) -> None:
    shapes = tuple(student.shape), tuple(teacher.shape)
    if min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            f"batches differ: student {shapes[0]}, teacher {shapes[1]}; both are [B, ...]"
        )
    check_pair(student, teacher)
    if kind not in get_args(Relation):
        raise ValueError(f"kind is {kind!r}, it must be one of {', '.join(get_args(Relation))}")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    types = dict.fromkeys(("student", "teacher", "grad"), POINTER[dtype])
    numbers = ("out", "pull", "peak", "upstream", "grams", "loss", "kept")
    types |= dict.fromkeys(numbers, "*fp32")
    types |= dict.fromkeys(("B", "UNITS", "UNITS_S", "UNITS_T", "SPLITS", "WORKERS"), "i32")
    found = []
    variants = [
        (config, kind, batch, unit)
        for kind, batch, unit in (
            ("spkd", 64, ALIGNED), ("rkd", 64, ALIGNED), ("rkd", 64, 1), ("rkd", 200, ALIGNED)
        )
        for config in _configs(batch)
    ]  # fmt: skip
    for config, kind, batch, unit in variants:
        launch = _launch(config, dtype, unit)
        constants = _constants(batch, kind, unit) | {"COLS": launch.pop("COLS")}
        back = constants | {"HALF": dtype != torch.float32}
        label = f"{batch} samples{' centred' * (kind == 'rkd')}{' odd' * (unit == 1)}"
        quick = config is CONFIGS[0] and kind == "spkd"
        found += [
            Compilation(_gram_parts_kernel, types, constants, launch, label, quick),
            Compilation(_batch_relation_bwd_kernel, types, back, launch, label, quick),
        ]
    for kind in get_args(Relation) if dtype == torch.float32 else ():
        for batch in (64, 200, 1000):
            relate, block = _relate(kind, batch)
            launch = {"num_warps": block.pop("num_warps")}
            label = f"{batch} samples"
            found.append(Compilation(relate, types, block, launch, label, batch == 64))
    return found


def _case(
    kind: Relation, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Case:
    shape = (64, 256, 72, 96)
    student = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)
    teacher = torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)
    student.requires_grad_()
    return Case(
        kernel=lambda: batch_relation(student, teacher, kind),
        reference=lambda: batch_relation_reference(student, teacher, kind),
        leaves=[student],
        floor_bytes=4 * student.numel() * student.element_size(),
        floor_flops=6 * 64 * student.numel(),
    )


def _setting(kind: Relation) -> Setting:
    return Setting(
        f"{kind}, 64 samples of 256x72x96",
        lambda device, dtype, layout: _case(kind, device, dtype, layout),
        layouts=(torch.contiguous_format, torch.channels_last),
    )


KERNEL = Kernel(
    name="batch_relation",
    formula="spkd: |G_T/|G_T| - G_S/|G_S||^2 / B^2; rkd: mean SmoothL1(d_S/mean - d_T/mean);"
    " pkt: mean p_T log((p_T + e) / (p_S + e))",
    traffic="forward: both maps read (up to 64 samples), partial Grams written and read;"
    " backward: the student's map read again, the gradient written",
    compilations=_compilations,
    settings=[_setting(kind) for kind in get_args(Relation)],
)
