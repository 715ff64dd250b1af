r"""Largest magnitude and histogram of magnitudes of a tensor in one pass, for INT8 calibration.

For values x and a limit L, over the whole tensor or each channel:

    absmax    = max |x|
    counts[i] = how many x have min(floor(|x| (bins / L)), bins - 1) = i

in float32 arithmetic, which is that of calib/histogram.py: the counts agree to the last one. The
last bin takes what lies beyond the limit.
"""

from collections.abc import Sequence
from typing import no_type_check

import torch
from torch import Tensor

from kdcompile.kernels._maps import ceil_div, dense, is_last, offsets, power_of_two, walk
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, jit, tl, use_triton
from kdcompile.kernels._tune import Config, best, shape_class

MOST_BINS = 1 << 20  # from there on float32 does not tell neighbouring bins apart
TINY = torch.finfo(torch.float32).tiny
PRIVATE = 1 << 18  # counters shared out among programs: 1 MB, so they stay in the L2 cache
CONFIGS: Sequence[Config] = (
    {"CELLS": 2048, "num_warps": 8, "num_stages": 1},
    {"CELLS": 1024, "num_warps": 4, "num_stages": 1},
    {"CELLS": 4096, "num_warps": 8, "num_stages": 1},
)


def absmax_histogram(
    values: Tensor, limit: Tensor, bins: int = 4096, *, axis: int | None = None
) -> tuple[Tensor, Tensor]:
    """The largest magnitude, float32, and the counts of magnitudes, int64.

    Args:
        values: any shape, floating. No gradient flows.
        limit: float32 scalar on the device of the values, where the last bin ends; with `axis`
            a scalar for all channels or [C].
        bins: how many equal bins there are from 0 to the limit.
        axis: None for the whole tensor, absmax [] and counts [bins]; 1 for each channel of
            [N, C, ...], absmax [C] and counts [C, bins].

    With a NaN absmax is NaN, and NaNs are counted nowhere; infinities are in the last bin. With a
    limit of 0, below float32's normal numbers times `bins`, or not finite, all but the NaNs are in
    the first bin. No values: zeros. Deterministic: integers are counted, in any order. Waits for
    nothing.

    Raises:
        ValueError: the limit does not fit the values, or an option is unknown.
    """
    _check(values, limit, bins, axis)
    values, limit = values.detach(), limit.detach()
    if values.numel() == 0:
        shape = () if axis is None else (values.shape[1],)
        counts = torch.zeros((*shape, bins), dtype=torch.int64, device=values.device)
        return torch.zeros(shape, device=values.device), counts
    if not use_triton("absmax_histogram", values, limit):
        return absmax_histogram_reference(values, limit, bins, axis)
    found: tuple[Tensor, Tensor] = absmax_histogram_forward(
        dense(values), limit.contiguous(), bins, axis is not None
    )
    return found


def absmax_histogram_reference(
    values: Tensor, limit: Tensor, bins: int, axis: int | None
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch; the arguments of `absmax_histogram`. float32 inside, whatever the type."""
    with full_precision(values):
        rows = values.float().reshape(1, -1)
        if axis is not None:
            rows = values.float().movedim(1, 0).flatten(1)
        magnitudes, seen = rows.abs(), ~rows.isnan()
        usable = (limit > TINY * bins) & limit.isfinite()
        full = torch.full_like(limit, bins)  # a number / limit would be a reciprocal, rounded twice
        factor = torch.where(usable, full / torch.where(usable, limit, 1), 0).reshape(-1, 1)
        bound = torch.where(usable, limit, 0).reshape(-1, 1)
        places = torch.where(seen, magnitudes, 0).minimum(bound) * factor
        first = bins * torch.arange(len(rows), device=rows.device).unsqueeze(1)
        flat = (places.clamp(max=bins - 1).long() + first).flatten()
        counts = torch.zeros(len(rows) * bins, dtype=torch.int64, device=rows.device)
        counts = counts.scatter_add(0, flat, seen.flatten().long())
        shape = () if axis is None else (len(rows),)
        return magnitudes.amax(1).reshape(shape), counts.reshape(*shape, bins)


@jit
@no_type_check
def _absmax_histogram_kernel(
    values,  # [N, C, P] in either memory format
    limit,  # [C] or scalar, float32
    largest,  # [C] int32, zeros before: the bits of max |x|, which are ordered as the numbers are
    counts,  # [copies, C, BINS] int32, zeros before
    C, P, copies, least,
    LAST: tl.constexpr, LIMITS: tl.constexpr, BINS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    across, along = tl.cdiv(C, CHANNELS), tl.cdiv(P, PIXELS)
    program = tl.program_id(0)
    channel = (program % across) * CHANNELS + tl.arange(0, CHANNELS)
    start = (program // across % along).to(tl.int64) * PIXELS
    pixel = start + tl.arange(0, PIXELS)
    real = channel < C
    place = offsets(program // across // along, channel[None, :], pixel[:, None], C, P, LAST)
    inside = real[None, :] & (pixel < P)[:, None]
    x = tl.load(values + place, inside, 0.0).to(tl.float32)
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF  # of |x|; a NaN's are the largest of all
    tl.atomic_max(largest + channel, tl.max(bits, 0), real, sem="relaxed")

    seen = inside & (x == x)
    end = tl.load(limit + channel * LIMITS, real, 0.0)
    usable = (end > least) & (end < float("inf"))
    bound = tl.where(usable, end, 0.0)
    all_bins = tl.full([CHANNELS], BINS, tl.float32)
    factor = tl.where(usable, tl.div_rn(all_bins, tl.where(usable, end, 1.0)), 0.0)
    magnitude = tl.minimum(tl.where(seen, tl.abs(x), 0.0), bound[None, :])
    i = tl.minimum(magnitude * factor[None, :], BINS - 1).to(tl.int32)
    # the zeros of a ReLU and what saturates would queue for one counter each: sum them up first
    low, high = seen & (i == 0), seen & (i > 0) & (i == BINS - 1)
    own = (program % copies).to(tl.int64) * C + program % across * CHANNELS
    first = counts + own * BINS
    row = tl.arange(0, CHANNELS) * BINS
    tl.atomic_add(first + row, tl.sum(low.to(tl.int32), 0), real, sem="relaxed")
    beyond = tl.sum(high.to(tl.int32), 0)
    tl.atomic_add(first + (row + BINS - 1), beyond, real & (beyond > 0), sem="relaxed")
    one = tl.full([PIXELS, CHANNELS], 1, tl.int32)
    tl.atomic_add(first + (row[None, :] + i), one, seen & ~low & ~high, sem="relaxed")


def _forward_fake(
    values: Tensor, limit: Tensor, bins: int, by_channel: bool
) -> tuple[Tensor, Tensor]:
    shape = (values.shape[1],) if by_channel else ()
    return (
        values.new_empty(shape, dtype=torch.float32),
        values.new_empty((*shape, bins), dtype=torch.int64),
    )


def _tile(config: Config, pixels: int, channels: int, last: bool) -> dict[str, int]:
    """Sides of a tile, the longer one along memory; and the launch's options."""
    launch = {name: config[name] for name in ("num_warps", "num_stages")}
    tall = 1 if last else min(power_of_two(pixels), config["CELLS"])
    wide = min(power_of_two(channels), 64, config["CELLS"] // tall)
    return {"PIXELS": config["CELLS"] // wide if last else tall, "CHANNELS": wide, **launch}


@operator(_forward_fake)
def absmax_histogram_forward(
    values: Tensor, limit: Tensor, bins: int, by_channel: bool
) -> tuple[Tensor, Tensor]:
    """absmax and counts; not differentiable."""
    shape = (values.shape[1],) if by_channel else ()
    channels = values.shape[1] if by_channel else 1
    images, pixels = walk(values) if by_channel else (1, values.numel())
    last = by_channel and is_last(values)
    most = values.numel() // channels  # no counter may overflow
    copies = max(PRIVATE // (channels * bins), ceil_div(most, 1 << 30), 1)

    def run(config: Config) -> tuple[Tensor, Tensor]:
        tile = _tile(config, pixels, channels, last)
        programs = images * ceil_div(pixels, tile["PIXELS"]) * ceil_div(channels, tile["CHANNELS"])
        own = min(copies, programs)
        largest = torch.zeros(shape, dtype=torch.int32, device=values.device)
        counts = torch.zeros((own, *shape, bins), dtype=torch.int32, device=values.device)
        _absmax_histogram_kernel[(programs,)](
            values, limit, largest, counts, channels, pixels, own, TINY * bins,
            LAST=last, LIMITS=limit.dim(), BINS=bins, **tile,
        )  # fmt: skip
        return largest.view(torch.float32), counts.sum(0)

    key = (values.dtype, *shape_class(values.numel(), pixels), channels, bins, last)
    return best("absmax_histogram", key, CONFIGS, values.device, run)


def _check(values: Tensor, limit: Tensor, bins: int, axis: int | None) -> None:
    shape = tuple(values.shape)
    if axis not in (None, 1) or (axis == 1 and values.dim() < 2):
        raise ValueError(f"axis is {axis}, values {shape} need None, or 1 for [N, C, ...]")
    if not values.is_floating_point():
        raise ValueError(
            f"values are {values.dtype}, a histogram of magnitudes needs floating ones"
        )
    wanted = [()] if axis is None else [(), (values.shape[1],)]
    if tuple(limit.shape) not in wanted or limit.dtype != torch.float32:
        found = f"limit is {tuple(limit.shape)} {limit.dtype}"
        need = " or ".join(str(w) for w in wanted)
        raise ValueError(f"{found}, the values {shape} need {need} torch.float32")
    if limit.device != values.device:
        raise ValueError(f"tensors lie apart: values on {values.device}, limit on {limit.device}")
    if not 1 <= bins <= MOST_BINS:
        raise ValueError(f"bins is {bins}, it must be from 1 to {MOST_BINS}")


def _compilations(dtype: torch.dtype) -> list[Compilation]:
    types = {"values": POINTER[dtype], "limit": "*fp32", "largest": "*i32", "counts": "*i32"}
    types |= dict.fromkeys(("C", "P", "copies"), "i32") | {"least": "fp32"}
    found = []
    for config in CONFIGS:
        for last, pixels, channels in ((False, 1 << 20, 1), (False, 49, 512), (True, 3136, 256)):
            tile = _tile(config, pixels, channels, last)
            launch = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
            constants = tile | {"LAST": last, "LIMITS": int(channels > 1), "BINS": 4096}
            label = f"{'last' if last else 'first'} {channels} channels, {config['CELLS']} cells"
            quick = config is CONFIGS[0] and channels == 1
            found += [Compilation(_absmax_histogram_kernel, types, constants, launch, label, quick)]
    return found


def _case(
    by_channel: bool, device: torch.device, dtype: torch.dtype, layout: torch.memory_format
) -> Case:
    values = torch.randn(8, 64, 288, 384, device=device).relu().to(dtype)
    values = values.contiguous(memory_format=layout)
    limit, axis = torch.full((), 5.0, device=device), 1 if by_channel else None
    return Case(
        kernel=lambda: absmax_histogram(values, limit, axis=axis)[1],
        reference=lambda: absmax_histogram_reference(values, limit, 4096, axis)[1],
        leaves=[],
        floor_bytes=values.numel() * values.element_size(),
    )


LAYOUTS = (torch.contiguous_format, torch.channels_last)
KERNEL = Kernel(
    name="absmax_histogram",
    formula="max |x|, and how many x have min(floor(|x| (bins / limit)), bins - 1) = i",
    traffic="the values read once; an atomic addition in the L2 cache for each but the zeros",
    compilations=_compilations,
    settings=[
        Setting("8 x 64 x 288 x 384", lambda *where: _case(False, *where)),
        Setting("the same by channel", lambda *where: _case(True, *where), layouts=LAYOUTS),
    ],
)
