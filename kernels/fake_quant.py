r"""Symmetric INT8 quantise and dequantise in float, for quantisation-aware distillation.

For values x and a scale s, one for the whole tensor or one for each index of an axis:

    i = round(x / s), half to even
    y = s clamp(i, -levels - 1, levels)
    dL/dx = dL/dy where -levels - 1 <= i <= levels, else 0          (straight-through)

With 127 levels the range is -128 to 127: that of the QuantizeLinear to int8 which calib/qdq.py
exports, of ONNX Runtime and of TensorRT. Weights never reach -128, since their scale is
max |w| / 127.
"""

from collections.abc import Sequence
from typing import Any, no_type_check

import torch
from torch import Tensor

from kdcompile.kernels._maps import ceil_div, dense, power_of_two
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, jit, tl, use_triton
from kdcompile.kernels._tune import Config, best, shape_class

ROUND = 1.5 * 2**23  # added to a small float32 and subtracted again, it rounds half to even
MOST_LEVELS = 1 << 15
CONFIGS: Sequence[Config] = (
    {"CELLS": 2048, "num_warps": 4, "num_stages": 1},
    {"CELLS": 1024, "num_warps": 4, "num_stages": 1},
    {"CELLS": 4096, "num_warps": 4, "num_stages": 1},
    {"CELLS": 8192, "num_warps": 8, "num_stages": 1},
)


def fake_quant(x: Tensor, scale: Tensor, *, axis: int | None = None, levels: int = 127) -> Tensor:
    """x on the grid that INT8 holds, in x's type, with the straight-through gradient.

    Args:
        x: any shape, floating. Computed in float32 and rounded to its type at the end.
        scale: float32, above 0: a scalar, or [C] along `axis`. No gradient flows to it.
        axis: the axis of x that has a scale for each index, as QuantizeLinear's; None for one.
        levels: the largest level; the smallest is -levels - 1, as in int8.

    The gradient passes where the rounded level is within the range, as PyTorch's own fake
    quantisation has it: so a weight of the largest magnitude, which is level 127 up to rounding,
    keeps its gradient. A NaN stays one and has no gradient. Where the scale is not above 0 or
    not finite, y and the gradient are 0. Bit-exact with the reference and deterministic.

    Raises:
        ValueError: the scale does not fit x, or an option is unknown.
    """
    _check(x, scale, axis, levels)
    axis = None if axis is None else axis % x.dim()
    scale = scale.detach()
    if x.numel() == 0:
        return x + 0
    if not use_triton("fake_quant", x, scale):
        return fake_quant_reference(x, scale, axis, levels)
    y: Tensor = _FakeQuant.apply(  # type: ignore[no-untyped-call]
        dense(x), scale.contiguous(), axis, levels
    )
    return y


def fake_quant_reference(x: Tensor, scale: Tensor, axis: int | None, levels: int) -> Tensor:
    """Plain PyTorch; the arguments of `fake_quant`. float64 stays float64."""
    with full_precision(x):
        wide = x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        s = scale.to(wide.dtype)
        if axis is not None:
            s = s.reshape([-1 if i == axis else 1 for i in range(x.dim())])
        usable = (s > 0) & s.isfinite()
        places = (wide / torch.where(usable, s, 1)).round() + 0.0  # no -0, as int8 has none
        inside = usable & (places >= -levels - 1) & (places <= levels)
        y = torch.where(usable, places.clamp(-levels - 1, levels) * s, 0).to(x.dtype)
        kept = torch.where(inside, x, 0)
        return y + (kept - kept.detach())  # adds 0, with the gradient of x


@jit
@no_type_check
def _tile_of(pid, scale, R, W, BY_ROW: tl.constexpr, BY_COLUMN: tl.constexpr, C,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    """Addresses of a tile of the memory as [R, W], which of them exist, and their scales."""
    across = tl.cdiv(W, COLUMNS)
    row = (pid // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (pid % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    if BY_ROW:
        own = tl.load(scale + row % C, row < R, 1.0)[:, None]
    elif BY_COLUMN:
        own = tl.load(scale + column, column < W, 1.0)[None, :]
    else:
        own = tl.full([1, 1], 0.0, tl.float32) + tl.load(scale)
    return row[:, None] * W + column[None, :], (row < R)[:, None] & (column < W)[None, :], own


@jit
@no_type_check
def _quotient(x, scale):
    """x / scale, but a quarter for 0, which rounds to the same; and whether there is a grid."""
    usable = (scale > 0) & (scale < float("inf"))
    divisor = tl.where(usable, scale, 1.0) + tl.zeros_like(x)
    # a zero would take the slow path of the division, and behind a ReLU every other value is one
    return tl.div_rn(tl.where(x == 0, 0.25 * divisor, x), divisor), usable


@jit
@no_type_check
def _fake_quant_fwd_kernel(
    x,  # [R, W] in memory
    scale,  # [C] float32
    y,  # like x
    R, W, C,
    BY_ROW: tl.constexpr, BY_COLUMN: tl.constexpr, LEVELS: tl.constexpr, ROUND: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    place, inside, own = _tile_of(
        tl.program_id(0), scale, R, W, BY_ROW, BY_COLUMN, C, ROWS, COLUMNS
    )
    values = tl.load(x + place, inside, 0.0).to(tl.float32)
    v, usable = _quotient(values, own)
    v = tl.where(v < -LEVELS - 1, -LEVELS - 1.0, v)  # keeps a NaN
    v = tl.where(v > LEVELS, LEVELS + 0.0, v)
    step = tl.where(usable, own, 1.0)
    found = tl.where(usable, ((v + ROUND) - ROUND) * step, 0.0)
    tl.store(y + place, found.to(y.dtype.element_ty), inside)


@jit
@no_type_check
def _fake_quant_bwd_kernel(
    x, scale,
    upstream,  # like x
    grad,  # like x
    R, W, C,
    BY_ROW: tl.constexpr, BY_COLUMN: tl.constexpr, LEVELS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    place, inside, own = _tile_of(
        tl.program_id(0), scale, R, W, BY_ROW, BY_COLUMN, C, ROWS, COLUMNS
    )
    values = tl.load(x + place, inside, 0.0).to(tl.float32)
    outer = tl.load(upstream + place, inside, 0.0)
    v, usable = _quotient(values, own)
    if LEVELS % 2 == 1:  # which of the two ends is even, and so draws the half beyond it in
        passes = (v >= -LEVELS - 1.5) & (v < LEVELS + 0.5)
    else:
        passes = (v > -LEVELS - 1.5) & (v <= LEVELS + 0.5)
    tl.store(grad + place, tl.where(passes & usable, outer, 0.0).to(grad.dtype.element_ty), inside)


def _plan(
    x: Tensor, axis: int | None, levels: int
) -> tuple[tuple[int, int, int], dict[str, Any], tuple[object, ...]]:
    """(R, W, C): x's memory as rows, and how many scales there are; constants; tuning's key."""
    count = 1 if axis is None else x.shape[axis]
    inner = 1 if axis is None else x.stride(axis)
    by_row, by_column = count > 1 and inner > 1, count > 1 and inner == 1
    width = inner if by_row else count if by_column else x.numel()
    constants = {"BY_ROW": by_row, "BY_COLUMN": by_column, "LEVELS": levels}
    sizes = (x.numel() // width, width, count)
    key = (x.dtype, *shape_class(*sizes[:2]), width % 16, *constants.values())
    return sizes, constants, key


def _tile(config: Config, width: int) -> dict[str, int]:
    """Sides of a tile of rows of that width; and the launch's options."""
    columns = min(power_of_two(width), config["CELLS"])
    launch = {name: config[name] for name in ("num_warps", "num_stages")}
    return {"ROWS": config["CELLS"] // columns, "COLUMNS": columns, **launch}


def _programs(sizes: tuple[int, int, int], tile: dict[str, int]) -> tuple[int]:
    return (ceil_div(sizes[0], tile["ROWS"]) * ceil_div(sizes[1], tile["COLUMNS"]),)


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@operator(_fake)
def fake_quant_forward(x: Tensor, scale: Tensor, axis: int | None, levels: int) -> Tensor:
    """y, in x's type and memory format."""
    sizes, constants, key = _plan(x, axis, levels)
    y = torch.empty_like(x)

    def run(config: Config) -> Tensor:
        tile = _tile(config, sizes[1])
        _fake_quant_fwd_kernel[_programs(sizes, tile)](
            x, scale, y, *sizes, ROUND=ROUND, **constants, **tile
        )
        return y

    return best("fake_quant_forward", key, CONFIGS, x.device, run)


@operator(_fake)
def fake_quant_backward(
    x: Tensor, scale: Tensor, upstream: Tensor, axis: int | None, levels: int
) -> Tensor:
    """The gradient of x; the upstream gradient has x's type and memory format."""
    sizes, constants, key = _plan(x, axis, levels)
    grad = torch.empty_like(x)

    def run(config: Config) -> Tensor:
        tile = _tile(config, sizes[1])
        _fake_quant_bwd_kernel[_programs(sizes, tile)](
            x, scale, upstream, grad, *sizes, **constants, **tile
        )
        return grad

    return best("fake_quant_backward", key, CONFIGS, x.device, run)


class _FakeQuant(torch.autograd.Function):
    """Keeps x, which the network holds anyway; not y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, axis: int | None, levels: int) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.plain = (axis, levels)
        return fake_quant_forward(x, scale, axis, levels)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        outer = _as(upstream[0], x)
        return fake_quant_backward(x, scale, outer, *ctx.plain), None, None, None


def _as(tensor: Tensor, other: Tensor) -> Tensor:
    """`tensor` in the memory format of the dense tensor `other`."""
    if other.is_contiguous():
        return tensor.contiguous()
    return tensor.contiguous(memory_format=torch.channels_last)


def _check(x: Tensor, scale: Tensor, axis: int | None, levels: int) -> None:
    shape = tuple(x.shape)
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, fake quantisation needs a floating type")
    if axis is not None and not -x.dim() <= axis < x.dim():
        raise ValueError(f"axis is {axis}, x {shape} has none such")
    wanted = () if axis is None else (x.shape[axis],)
    if tuple(scale.shape) != wanted or scale.dtype != torch.float32:
        found = f"scale is {tuple(scale.shape)} {scale.dtype}"
        raise ValueError(f"{found}, x {shape} with axis {axis} needs {wanted} torch.float32")
    if scale.device != x.device:
        raise ValueError(f"tensors lie apart: x on {x.device}, scale on {scale.device}")
    if not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels is {levels}, it must be from 1 to {MOST_LEVELS}")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    pointer = POINTER[dtype]
    types = {"x": pointer, "scale": "*fp32"} | dict.fromkeys(("R", "W", "C"), "i32")
    found = []
    for config in CONFIGS:
        for name, width in (("flat", 1 << 20), ("rows", 3136), ("columns", 256)):
            tile = _tile(config, width)
            launch = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
            constants = tile | {"BY_ROW": name == "rows", "BY_COLUMN": name == "columns"}
            constants["LEVELS"] = 127
            rounding = constants | {"ROUND": ROUND}
            label, quick = f"{name} {config['CELLS']}", config is CONFIGS[0] and name == "rows"
            forward, backward = (
                types | {"y": pointer},
                types | {"upstream": pointer, "grad": pointer},
            )
            found += [
                Compilation(_fake_quant_fwd_kernel, forward, rounding, launch, label, quick),
                Compilation(_fake_quant_bwd_kernel, backward, constants, launch, label, quick),
            ]
    return found


def _case(
    axis: int | None, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Case:
    x = torch.randn(8, 64, 288, 384, device=device, dtype=dtype).contiguous(memory_format=layout)
    scale = torch.full(() if axis is None else (64,), 0.02, device=device)
    x.requires_grad_()
    return Case(
        kernel=lambda: fake_quant(x, scale, axis=axis),
        reference=lambda: fake_quant_reference(x, scale, axis, 127),
        leaves=[x],
        floor_bytes=5 * x.numel() * x.element_size(),
    )


LAYOUTS = (torch.contiguous_format, torch.channels_last)
KERNEL = Kernel(
    name="fake_quant",
    formula="s clamp(round(x / s), -128, 127); the gradient passes inside the range",
    traffic="forward: x read, y written; backward: x and dy read, dx written",
    compilations=_compilations,
    settings=[
        Setting("8 x 64 x 288 x 384", lambda *where: _case(None, *where)),
        Setting("the same by channel", lambda *where: _case(1, *where), layouts=LAYOUTS),
    ],
)
