r"""Training crops cut, scaled, flipped, recoloured and normalised straight from bytes.

A crop of side s shows a window [h', w'] of a photo, scaled to [h, w] at its top left; the rest is
padding. For a value v of the window, bilinearly interpolated and in 0..1 (pixel centres at n + 1/2,
the window's border repeated), the crop holds

    x = b v                                  brightness
    y = min(max(m + k (x - m), 0), 1)        contrast around m, the mean of x over pixels, channels
    (y - mean[c]) / std[c]                   and 0 in the padding

mirrored if asked for. Without colour y is v. With it the mean needs a pass of its own over the
windows' bytes, which are few beside the crops that are written.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import no_type_check

import torch
from torch import Tensor

from kdcompile.kernels._maps import ceil_div, power_of_two
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import DTYPES, full_precision, jit, tl, use_triton
from kdcompile.kernels._tune import Config, best, shape_class

SPLIT = 1 << 20  # a float32 holds a larger place than 2^24 only in two parts
MOST_PARTS = 64  # sums of a crop that the second pass adds up again in each program
CONFIGS: Sequence[Config] = (
    {"CELLS": 256, "LINES": 8, "num_warps": 4, "num_stages": 1},
    {"CELLS": 128, "LINES": 16, "num_warps": 8, "num_stages": 1},
)


class Column(IntEnum):
    """What a row of the table says of its crop; further columns are the caller's.

    The window's first pixel lies HIGH * SPLIT + LOW pixels into the source, its rows PITCH pixels
    apart. WINDOW_H, WINDOW_W: its size. HEIGHT, WIDTH: its size in the crop. FLIP: 1 to mirror.
    """

    HIGH = 0
    LOW = 1
    PITCH = 2
    WINDOW_H = 3
    WINDOW_W = 4
    HEIGHT = 5
    WIDTH = 6
    FLIP = 7
    BRIGHTNESS = 8
    CONTRAST = 9


def crop_augment(
    source: Tensor,
    table: Tensor,
    side: int,
    mean: Tensor,
    std: Tensor,
    *,
    colour: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The crops [B, C, side, side]; in channels_last format, but contiguous from the reference.

    Args:
        source: uint8 [bytes], photos of C channels as [H, W, C] one after the other.
        table: float32 [B, P], a row for each crop, its first columns as in `Column`. Windows must
            lie within the source: nothing checks it.
        side: of a crop in pixels.
        mean: float32 [C], of the normalisation.
        std: float32 [C], of the normalisation.
        colour: False leaves BRIGHTNESS and CONTRAST unread and saves the pass for the mean.
        dtype: of the crops; float32, float16 or bfloat16.

    No gradient flows. Waits for nothing: shapes depend on no value, so a CUDA graph can hold it and
    be replayed on another table. Deterministic.

    Raises:
        ValueError: the arguments do not fit each other.
    """
    _check(source, table, side, mean, std, dtype)
    if not use_triton("crop_augment", source, table):
        return crop_augment_reference(source, table, side, mean, std, colour, dtype)
    crops: Tensor = crop_augment_forward(source, table, side, mean, std, colour, dtype)
    return crops


def crop_augment_reference(
    source: Tensor,
    table: Tensor,
    side: int,
    mean: Tensor,
    std: Tensor,
    colour: bool,
    dtype: torch.dtype,
) -> Tensor:
    """Plain PyTorch; the arguments of `crop_augment`. float32 inside; the crops are contiguous."""
    channels, device = mean.numel(), table.device
    column = {c: table[:, c].view(-1, 1) for c in Column}
    line = torch.arange(side, dtype=torch.float32, device=device).view(1, -1)
    across = torch.where(column[Column.FLIP] > 0, side - 1 - line, line)
    top, bottom, down = _taps(line, column[Column.WINDOW_H], column[Column.HEIGHT])
    left, right, along = _taps(across, column[Column.WINDOW_W], column[Column.WIDTH])
    start = column[Column.HIGH].long() * SPLIT + column[Column.LOW].long()
    pitch, planes = column[Column.PITCH].long(), torch.arange(channels, device=device).view(-1, 1)

    def taken(rows: Tensor, columns: Tensor) -> Tensor:  # [B, C, s, s]
        first = ((start + rows * pitch) * channels).unsqueeze(1) + planes
        place = first.unsqueeze(3) + (columns * channels).view(-1, 1, 1, side)
        return source.index_select(0, place.flatten()).view(place.shape).float()

    with full_precision(table):
        down, along = down[:, None, :, None], along[:, None, None, :]
        values = taken(top, left).lerp_(taken(top, right), along)
        values.lerp_(taken(bottom, left).lerp_(taken(bottom, right), along), down).div_(255)
        height, width = (column[c].view(-1, 1, 1, 1) for c in (Column.HEIGHT, Column.WIDTH))
        seen = line.view(side, 1) < height, across[:, None, None, :] < width  # no padding
        if colour:
            _recolour(values.mul_(seen[0]).mul_(seen[1]), height * width * channels, column)
        values.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1)).mul_(seen[0]).mul_(seen[1])
        return values.to(dtype)


def _taps(line: Tensor, window: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For places along one side of a crop: two pixels of the window, the second one's weight."""
    at = ((line + 0.5) * (window / size) - 0.5).clamp_min(0)
    first = torch.minimum(at.floor(), window - 1)
    second = torch.minimum(first + 1, window - 1)
    return first.long(), second.long(), at - first


def _recolour(values: Tensor, cells: Tensor, column: dict[Column, Tensor]) -> None:
    """Brightness, then contrast, of values [B, C, s, s] in place; they are 0 in the padding."""
    brightness, contrast = (
        column[c].view(-1, 1, 1, 1) for c in (Column.BRIGHTNESS, Column.CONTRAST)
    )
    values.mul_(brightness)
    centre = values.sum((1, 2, 3), keepdim=True) / cells
    values.sub_(centre).mul_(contrast).add_(centre).clamp_(0, 1)


@jit
@no_type_check
def _tap(place, window, size):
    """As `_taps`, for one block."""
    at = tl.maximum((place.to(tl.float32) + 0.5) * (window / size) - 0.5, 0.0)
    first = tl.minimum(tl.floor(at), window - 1)
    second = tl.minimum(first + 1, window - 1)
    return first.to(tl.int32), second.to(tl.int32), at - first


@jit
@no_type_check
def _sampled(source, row, line, element, side, SPLIT: tl.constexpr, C: tl.constexpr):
    """Values 0..1 of the elements [x, c] of lines of a crop, and which are no padding.

    In the padding a value is one of the window's border.
    """
    # the columns in the order of Column
    corner = source + (tl.load(row).to(tl.int64) * SPLIT + tl.load(row + 1).to(tl.int64)) * C
    pitch = tl.load(row + 2).to(tl.int32) * C
    height, width = tl.load(row + 5), tl.load(row + 6)
    x = element // C
    x = tl.where(tl.load(row + 7) > 0, side - 1 - x, x)
    inside = (element < side * C) & (x < width.to(tl.int32))
    valid = inside[None, :] & (line < height.to(tl.int32))[:, None]
    top, bottom, down = _tap(line, tl.load(row + 3), height)
    left, right, along = _tap(x, tl.load(row + 4), width)
    left, right = (left * C + element % C)[None, :], (right * C + element % C)[None, :]
    upper = (corner + top.to(tl.int64) * pitch)[:, None]
    lower = (corner + bottom.to(tl.int64) * pitch)[:, None]
    a, b = tl.load(upper + left).to(tl.float32), tl.load(upper + right).to(tl.float32)
    c, d = tl.load(lower + left).to(tl.float32), tl.load(lower + right).to(tl.float32)
    first, second = a + along[None, :] * (b - a), c + along[None, :] * (d - c)
    return (first + down[:, None] * (second - first)) * (1 / 255), valid


@jit
@no_type_check
def _crop_augment_kernel(
    source,
    table,  # [B, columns] float32
    mean,  # [C] float32
    std,
    partial,  # [B, PARTS] float32: sums of v, written where SUM and read where COLOUR
    out,  # [B, side, side, C]
    columns, side,
    SUM: tl.constexpr, COLOUR: tl.constexpr, PARTS: tl.constexpr, SPLIT: tl.constexpr,
    C: tl.constexpr, CELLS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """A part of LINES lines of a crop; where SUM nothing but every PARTS-th lines' sum."""
    blocks = tl.cdiv(side * C, CELLS)
    per_crop = PARTS if SUM else tl.cdiv(side, LINES) * blocks
    crop, block = tl.program_id(0) // per_crop, tl.program_id(0) % per_crop
    row = table + crop.to(tl.int64) * columns
    line, cell = tl.arange(0, LINES), tl.arange(0, CELLS)
    if SUM:
        total = tl.zeros([LINES, CELLS], tl.float32)
        for first in range(block * LINES, side, PARTS * LINES):
            for begin in range(0, side * C, CELLS):
                value, valid = _sampled(source, row, first + line, begin + cell, side, SPLIT, C)
                total += tl.where(valid, value, 0.0)
        tl.store(partial + tl.program_id(0), tl.sum(tl.sum(total, 1), 0))
    else:
        element, line = block % blocks * CELLS + cell, block // blocks * LINES + line
        value, valid = _sampled(source, row, line, element, side, SPLIT, C)
        if COLOUR:
            brightness, contrast = tl.load(row + 8), tl.load(row + 9)
            centre = tl.sum(tl.load(partial + crop * PARTS + tl.arange(0, PARTS)), 0)
            centre = centre * brightness / (tl.load(row + 5) * tl.load(row + 6) * C)
            value = centre + contrast * (value * brightness - centre)
            value = tl.minimum(tl.maximum(value, 0.0), 1.0)
        scale = 1 / tl.load(std + element % C)
        value = (value - tl.load(mean + element % C)[None, :]) * scale[None, :]
        value = tl.where(valid, value, 0.0).to(out.dtype.element_ty)
        place = out + crop.to(tl.int64) * side * side * C + line[:, None] * (side * C)
        real = (line < side)[:, None] & (element < side * C)[None, :]
        tl.store(place + element[None, :], value, real)


def _forward_fake(
    source: Tensor,
    table: Tensor,
    side: int,
    mean: Tensor,
    std: Tensor,
    colour: bool,
    dtype: torch.dtype,
) -> Tensor:
    shape = (table.shape[0], mean.numel(), side, side)
    return torch.empty(shape, dtype=dtype, device=table.device, memory_format=torch.channels_last)


@operator(_forward_fake)
def crop_augment_forward(
    source: Tensor,
    table: Tensor,
    side: int,
    mean: Tensor,
    std: Tensor,
    colour: bool,
    dtype: torch.dtype,
) -> Tensor:
    """The crops; not differentiable."""
    batch, channels = table.shape[0], mean.numel()
    out = _forward_fake(source, table, side, mean, std, colour, dtype)

    def run(config: Config) -> Tensor:
        blocks = ceil_div(side * channels, config["CELLS"]) * ceil_div(side, config["LINES"])
        parts = min(power_of_two(ceil_div(side, config["LINES"])), MOST_PARTS)
        partial = table.new_empty((batch, parts if colour else 0))
        passes = ((True, parts), (False, blocks)) if colour else ((False, blocks),)
        for is_sum, programs in passes:
            _crop_augment_kernel[(batch * programs,)](
                source, table, mean, std, partial, out, table.stride(0), side,
                SUM=is_sum, COLOUR=colour, PARTS=parts, SPLIT=SPLIT, C=channels, **config,
            )  # fmt: skip
        return out

    # not by batch: a crop's bits are the same whatever others are made beside it
    key = (dtype, *shape_class(side), channels, colour)
    crops: Tensor = best("crop_augment", key, CONFIGS, table.device, run)
    return crops


def _check(
    source: Tensor, table: Tensor, side: int, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> None:
    channels = mean.numel()
    if source.dim() != 1 or source.dtype != torch.uint8 or not source.is_contiguous():
        raise ValueError(f"the source is {tuple(source.shape)} {source.dtype}, not uint8 [bytes]")
    if channels < 1 or mean.shape != (channels,) or std.shape != (channels,):
        shapes = f"{tuple(mean.shape)} and {tuple(std.shape)}"
        raise ValueError(f"mean and std are {shapes}, they must be [C]")
    if source.numel() % channels:
        raise ValueError(f"{source.numel()} bytes are no pixels of {channels} channels")
    if table.dim() != 2 or table.shape[1] < len(Column) or table.stride(1) != 1:
        found = f"{tuple(table.shape)} with strides {table.stride()}"
        raise ValueError(f"the table is {found}, it must be dense rows of {len(Column)} or more")
    if {table.dtype, mean.dtype, std.dtype} != {torch.float32}:
        types = f"{table.dtype}, {mean.dtype} and {std.dtype}"
        raise ValueError(f"table, mean and std are {types}, they must be float32")
    if len({t.device for t in (source, table, mean, std)}) > 1:
        raise ValueError(f"tensors lie apart: source on {source.device}, table on {table.device}")
    if side < 1 or side * side * channels >= 1 << 30:
        raise ValueError(f"side is {side}, a crop must hold 1 to 2^30 values")
    if dtype not in DTYPES:
        raise ValueError(f"crops of {dtype}: only float32, float16 and bfloat16 are written")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    types = {"source": "*u8", "out": POINTER[dtype]} | dict.fromkeys(("columns", "side"), "i32")
    types |= dict.fromkeys(("table", "mean", "std", "partial"), "*fp32")
    found = []
    for config in CONFIGS:
        launch = {name: config[name] for name in ("num_warps", "num_stages")}
        for is_sum, colour, channels in (
            (False, True, 3), (True, True, 3), (False, False, 3), (False, True, 1), (True, True, 1)
        ):  # fmt: skip
            if is_sum and dtype != torch.float32:
                continue  # that pass writes no crop: it is the same for every type
            constants = {"SUM": is_sum, "COLOUR": colour, "PARTS": MOST_PARTS, "SPLIT": SPLIT}
            constants |= {"C": channels, "CELLS": config["CELLS"], "LINES": config["LINES"]}
            label = f"{'sum' if is_sum else 'colour' if colour else 'plain'} of {channels}"
            label += f", {config['CELLS']} cells, {config['num_warps']} warps"
            quick = config is CONFIGS[0] and colour and channels == 3
            found += [Compilation(_crop_augment_kernel, types, constants, launch, label, quick)]
    return found


def _case(side: int, device: torch.device, dtype: torch.dtype, _: torch.memory_format) -> Case:
    """16 crops at zooms of 0.7 to 1.4 from 8 photos, of 768 x 1024 for crops of 512."""
    tall, wide = side * 3 // 2, side * 2
    source = torch.randint(0, 256, (8 * tall * wide * 3,), dtype=torch.uint8, device=device)
    windows = [round(side / (0.7 + 0.7 * i / 15)) for i in range(16)]
    rows: list[list[float]] = []
    for i, window in enumerate(windows):
        start = (i % 8 * tall + (tall - window) // 2) * wide + 3 * i
        sizes = [window, window, side, side]
        rows.append([start // SPLIT, start % SPLIT, wide, *sizes, i % 2, 0.9, 1.1])
    table = torch.tensor(rows, dtype=torch.float32, device=device)
    mean, std = (torch.full((3,), value, device=device) for value in (0.45, 0.23))
    return Case(
        kernel=lambda: crop_augment(source, table, side, mean, std, dtype=dtype),
        reference=lambda: crop_augment_reference(source, table, side, mean, std, True, dtype),
        leaves=[],
        floor_bytes=3 * (sum(w * w for w in windows) + 16 * side * side * dtype.itemsize),
    )


KERNEL = Kernel(
    name="crop_augment",
    formula="(min(max(m + k (b v - m), 0), 1) - mean) / std; m = mean of b v over the crop",
    traffic="the windows' bytes read (again, from the cache, for their means), the crops written",
    compilations=_compilations,
    settings=[
        Setting(
            "16 crops of 3 x 512 x 512", lambda *where: _case(512, *where),
            dtypes=(torch.float32, torch.bfloat16),
        ),
        Setting(
            "16 crops of 3 x 1024 x 1024", lambda *where: _case(1024, *where),
            dtypes=(torch.float32, torch.bfloat16),
        ),
    ],
)  # fmt: skip
