r"""Largest magnitude and histogram of magnitudes of a tensor in one pass, for INT8 calibration.

For values x and a limit L, over the whole tensor or each channel:

    absmax    = max |x|
    counts[i] = how many x have min(floor(|x| (bins / L)), bins - 1) = i

in float32 arithmetic, which is that of calib/histogram.py: the counts agree to the last one. The
last bin takes what lies beyond the limit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdcompile.kernels._absmax_histogram import (
    SHARED_COUNTS,
    absmax_histogram_kernel,
    absmax_histogram_private_kernel,
    absmax_histogram_sum_kernel,
)
from kdcompile.kernels._maps import ceil_div, dense, is_last, power_of_two, walk
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Case, Compilation, Kernel, Setting
from kdcompile.kernels._runtime import full_precision, use_triton
from kdcompile.kernels._tune import Config, best, shape_class

MOST_BINS = 1 << 20  # from there on float32 does not tell neighbouring bins apart
TINY = torch.finfo(torch.float32).tiny
COUNTERS = 1 << 18  # shared out among programs: 1 MB, so they stay in the L2 cache
PRIVATE_BINS = 8192  # 32 KB of shared memory
PRIVATE_PIXELS = 4096  # fewer would leave most of a tile empty
MOST = 1 << 30  # values that 32-bit counters may count
CONFIGS: Sequence[Config] = (
    {"CELLS": 2048, "num_warps": 8, "num_stages": 1},
    {"CELLS": 1024, "num_warps": 4, "num_stages": 1},
    {"CELLS": 4096, "num_warps": 8, "num_stages": 1},
)
PRIVATE_CONFIGS: Sequence[Config] = (
    {"CELLS": 8192, "PROGRAMS": 264, "num_warps": 8, "num_stages": 1},
    {"CELLS": 16384, "PROGRAMS": 264, "num_warps": 16, "num_stages": 1},
    {"CELLS": 4096, "PROGRAMS": 528, "num_warps": 8, "num_stages": 1},
    {"CELLS": 8192, "PROGRAMS": 64, "num_warps": 16, "num_stages": 1},
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


def _private(
    config: Config, values: Tensor, limit: Tensor, sizes: tuple[int, int, int], bins: int,
    by_channel: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Counts of each program in its shared memory, then their sum."""
    images, channels, pixels = sizes
    tiles = images * ceil_div(pixels, config["CELLS"])
    share = min(max(config["PROGRAMS"] // channels, ceil_div(images * pixels, MOST), 1), tiles)
    wide = power_of_two(bins, 32 * config["num_warps"])
    launch = {name: config[name] for name in ("num_warps", "num_stages")}
    largest, counts = (
        values.new_empty(channels * share * width, dtype=torch.int32) for width in (1, wide)
    )
    absmax_histogram_private_kernel[(channels * share,)](
        values, limit, largest, counts, images, channels, pixels, share, TINY * bins,
        LIMITS=limit.dim(), BINS=bins, WIDE=wide, CELLS=config["CELLS"], **launch,
    )  # fmt: skip
    shape = (channels,) if by_channel else ()
    absmax = values.new_empty(shape, dtype=torch.float32)
    total = values.new_empty((*shape, bins), dtype=torch.int64)
    block = _sum_block(share, wide)
    absmax_histogram_sum_kernel[(channels * ceil_div(bins, block["SIDE"]),)](
        largest, counts, absmax, total, share, BINS=bins, WIDE=wide, **block, num_warps=8
    )
    return absmax, total


def _sum_block(share: int, wide: int) -> dict[str, int]:
    """Sides of the tiles that are added up: 4096 counters."""
    rows = min(power_of_two(share), 128)
    return {"ROWS": rows, "SIDE": min(4096 // rows, wide)}


def _common(
    config: Config, values: Tensor, limit: Tensor, sizes: tuple[int, int, int], bins: int,
    by_channel: bool, last: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Counters in the L2 cache that programs have in common."""
    images, channels, pixels = sizes
    shape = (channels,) if by_channel else ()
    copies = max(COUNTERS // (channels * bins), ceil_div(images * pixels, MOST), 1)
    tile = _tile(config, pixels, channels, last)
    programs = images * ceil_div(pixels, tile["PIXELS"]) * ceil_div(channels, tile["CHANNELS"])
    own = min(copies, programs)
    largest = torch.zeros(shape, dtype=torch.int32, device=values.device)
    counts = torch.zeros((own, *shape, bins), dtype=torch.int32, device=values.device)
    absmax_histogram_kernel[(programs,)](
        values, limit, largest, counts, channels, pixels, own, TINY * bins,
        LAST=last, LIMITS=limit.dim(), BINS=bins, **tile,
    )  # fmt: skip
    return largest.view(torch.float32), counts.sum(0)


@operator(_forward_fake)
def absmax_histogram_forward(
    values: Tensor, limit: Tensor, bins: int, by_channel: bool
) -> tuple[Tensor, Tensor]:
    """absmax and counts; not differentiable."""
    channels = values.shape[1] if by_channel else 1
    images, pixels = walk(values) if by_channel else (1, values.numel())
    last = by_channel and is_last(values)
    private = SHARED_COUNTS and bins <= PRIVATE_BINS and pixels >= PRIVATE_PIXELS
    sizes = images, channels, pixels
    if private and last:  # a program counts one channel: their values are gathered first
        values = values.movedim(1, 0).contiguous()

    def run(config: Config) -> tuple[Tensor, Tensor]:
        if private:
            return _private(config, values, limit, sizes, bins, by_channel)
        return _common(config, values, limit, sizes, bins, by_channel, last)

    configs = PRIVATE_CONFIGS if private else CONFIGS
    key = (values.dtype, *shape_class(values.numel(), pixels), channels, bins, last)
    return best("absmax_histogram", key, configs, values.device, run)


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
    types |= {"absmax": "*fp32", "total": "*i64", "least": "fp32"}
    types |= dict.fromkeys(("N", "C", "P", "share", "copies"), "i32")
    found = []
    for config in CONFIGS:
        for last, pixels, channels in ((False, 1 << 20, 1), (False, 49, 512), (True, 3136, 256)):
            tile = _tile(config, pixels, channels, last)
            launch = {name: tile.pop(name) for name in ("num_warps", "num_stages")}
            constants = tile | {"LAST": last, "LIMITS": int(channels > 1), "BINS": 4096}
            label = f"{'last' if last else 'first'} {channels} channels, {config['CELLS']} cells"
            quick = config is CONFIGS[0] and channels == 1 and dtype != torch.float32
            found += [Compilation(absmax_histogram_kernel, types, constants, launch, label, quick)]
    for config in PRIVATE_CONFIGS if SHARED_COUNTS else ():
        launch = {name: config[name] for name in ("num_warps", "num_stages")}
        own = {"LIMITS": 0, "BINS": 4096, "WIDE": 4096, "CELLS": config["CELLS"]}
        label, quick = f"private, {config['CELLS']} cells", config is PRIVATE_CONFIGS[0]
        kernel = absmax_histogram_private_kernel
        found += [Compilation(kernel, types, own, launch, label, quick)]
    own = {"BINS": 4096, "WIDE": 4096, **_sum_block(PRIVATE_CONFIGS[0]["PROGRAMS"], 4096)}
    if SHARED_COUNTS and dtype == torch.float32:
        kernel = absmax_histogram_sum_kernel
        found += [Compilation(kernel, types, own, {"num_warps": 8}, "", True)]
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
    traffic="the values read once (written and read once more by channel where channels are"
    " innermost); an addition in shared memory for each, with Triton before 3.8, for tiny channels"
    " and for more than 8192 bins in the L2 cache",
    compilations=_compilations,
    settings=[
        Setting("8 x 64 x 288 x 384", lambda *where: _case(False, *where)),
        Setting("the same by channel", lambda *where: _case(True, *where), layouts=LAYOUTS),
    ],
)
