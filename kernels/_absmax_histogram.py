"""Triton code of `absmax_histogram`: counts in shared memory and their sum, or in the L2 cache."""

from typing import no_type_check

from kdcompile.kernels._maps import offsets
from kdcompile.kernels._runtime import jit, tl, triton_since

# the histogram of Triton 3.8 adds in shared memory; before, it votes on each bit of each bin
SHARED_COUNTS = triton_since(3, 8)


@jit
@no_type_check
def absmax_histogram_private_kernel(
    values,  # [N, C, P], contiguous
    limit,  # [C] or scalar, float32
    largest,  # [C, share] int32: the bits of max |x|, which are ordered as the numbers are
    counts,  # [C, share, WIDE] int32
    N, C, P, share, least,
    LIMITS: tl.constexpr, BINS: tl.constexpr, WIDE: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Each program counts its share of a channel's tiles, and writes its own row once."""
    program = tl.program_id(0)
    channel, first = program // share, program % share
    end = tl.load(limit + channel * LIMITS)
    usable = (end > least) & (end < float("inf"))
    factor = tl.where(usable, tl.div_rn(BINS + 0.0, tl.where(usable, end, 1.0)), 1.0)
    top = tl.where(usable, BINS - 1.0, 0.0)
    cell = tl.arange(0, CELLS)
    most = tl.zeros([CELLS], tl.float32)
    counted = tl.zeros([WIDE], tl.int32)
    real = 0
    tiles = tl.cdiv(P, CELLS)
    corner, image = values + channel.to(tl.int64) * P, tl.cast(C, tl.int64) * P
    for tile in range(first, N * tiles, share):
        start = (tile % tiles) * CELLS
        place = corner + (tile // tiles * image + start)
        # what lies beyond the end is NaN, which is counted nowhere
        x = tl.abs(tl.load(place + cell, cell < P - start, float("nan")).to(tl.float32))
        most = tl.maximum(most, x)
        i = tl.minimum(x * factor, top).to(tl.int32)
        counted += tl.histogram(i, WIDE, x == x)
        real += tl.minimum(P - start, CELLS).to(tl.int32)
    lost = real != tl.sum(counted, 0)  # a value was NaN: so is the largest
    bits = tl.where(lost, 0x7FC00000, tl.max(most.to(tl.int32, bitcast=True), 0))
    tl.store(largest + program, bits)
    tl.store(counts + program.to(tl.int64) * WIDE + tl.arange(0, WIDE), counted)


@jit
@no_type_check
def absmax_histogram_sum_kernel(
    largest, counts,  # as the kernel before has written them
    absmax,  # [C] float32
    total,  # [C, BINS] int64
    share,
    BINS: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Each program adds up a few bins of one channel."""
    channel, block = tl.program_id(0) // tl.cdiv(BINS, SIDE), tl.program_id(0) % tl.cdiv(BINS, SIDE)
    place = block * SIDE + tl.arange(0, SIDE)
    found = tl.zeros([SIDE], tl.int64)
    most = tl.zeros([ROWS], tl.int32)
    for first in range(0, share, ROWS):
        row = first + tl.arange(0, ROWS)
        own = channel * share + row
        inside = (row < share)[:, None] & (place < BINS)[None, :]
        rows = tl.load(counts + (own.to(tl.int64) * WIDE)[:, None] + place[None, :], inside, 0)
        found += tl.sum(rows.to(tl.int64), 0)
        most = tl.maximum(most, tl.load(largest + own, row < share, 0))
    tl.store(total + channel.to(tl.int64) * BINS + place, found, place < BINS)
    if block == 0:
        tl.store(absmax + channel, tl.max(most, 0).to(tl.float32, bitcast=True))


@jit
@no_type_check
def absmax_histogram_kernel(
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
