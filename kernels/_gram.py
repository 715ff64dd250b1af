"""The Triton kernels of `gram_relation`: normalise, Grams, and their backward pass.

Z holds the pooled and normalised maps of one net, all layers behind each other: [N, C, Q], with Q
the P pixels rounded up to `ALIGN`, zeros in between, so that the products need no pixel mask. For
half precision maps of either kind Z is float16: |z| is at most sqrt(P), so nothing overflows, and
float16 keeps three bits more than bfloat16. `layer` [2, C] says where the layer of a channel
starts and how wide it is; gradients and arg-maxima lie layer by layer, each [N, C_i, P].

Instance normalisation takes the mean and the part along z out of a gradient. Both are found for the
rounded z, whose mean and length are not exactly 0 and 1: a sum over the pixels, as in a weight's
gradient, would keep what is left of them.
"""

from typing import no_type_check

from kdcompile.kernels._maps import matmul
from kdcompile.kernels._runtime import jit, tl

ALIGN = 64  # pixels of a row of Z
D_ALIGN = 16  # channels of a row of D
D_SCALE = 4096.0  # |D| <= 2 is stored times this: small differences stay normal in float16
EPS = 1e-5  # beside the variance of a channel, as in torch's instance_norm


@jit
@no_type_check
def _gap(x, row, first, start, P, valid, BLOCK: tl.constexpr):
    """Pixels of a block of rows, less the first pixel of each row; 0 beyond the last."""
    p = start + tl.arange(0, BLOCK)
    mask = valid[:, None] & (p < P)[None, :]
    value = tl.load(x + (row * P)[:, None] + p[None, :], mask, 0.0).to(tl.float32)
    return tl.where(mask, value - first[:, None], 0.0), mask, p


@jit
@no_type_check
def _rounded(gap, mask, scale, row, p, z, Q, valid):
    """Store a block of z, zeros beyond the last pixel; the sums over it of z and z^2 as stored."""
    value = tl.where(mask, gap * scale[:, None], 0.0).to(z.dtype.element_ty)
    tl.store(z + (row * Q)[:, None] + p[None, :], value, valid[:, None] & (p < Q)[None, :])
    value = value.to(tl.float32)
    return tl.sum(value, 1), tl.sum(value * value, 1)


@jit
@no_type_check
def normalize_kernel(
    x,  # [N, OWN, P]: one layer
    z,  # [N, C, Q]
    stats,  # [3, N, C] float32: 1 / deviation; of the rounded z the mean, and z^2 / its variance;
    # with `layer` only where STATS
    layer,  # [2, C] int32
    rows, OWN, begin, C, P, Q, size,
    EPS: tl.constexpr, STATS: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    valid = row < rows
    channel = begin + row % OWN
    own = row // OWN * C + channel
    # relative to the first pixel: a constant row is 0 exactly, a large mean costs no digits
    first = tl.load(x + row * P, valid, 0.0).to(tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    square = tl.zeros([ROWS], tl.float32)
    if WHOLE:  # a row is read once and stays in registers
        gap, mask, p = _gap(x, row, first, 0, P, valid, BLOCK)
        mean = tl.sum(gap, 1) / P
        gap = tl.where(mask, gap - mean[:, None], 0.0)
        square = tl.sum(gap * gap, 1) / P
        scale = 1.0 / tl.sqrt(square + EPS)
        mu, rounded = _rounded(gap, mask, scale, own, p, z, Q, valid)
    else:
        mu = tl.zeros([ROWS], tl.float32)
        rounded = tl.zeros([ROWS], tl.float32)
        for start in range(0, P, BLOCK):
            gap, mask, p = _gap(x, row, first, start, P, valid, BLOCK)
            total += tl.sum(gap, 1)
        mean = total / P
        for start in range(0, P, BLOCK):
            gap, mask, p = _gap(x, row, first, start, P, valid, BLOCK)
            gap = tl.where(mask, gap - mean[:, None], 0.0)
            square += tl.sum(gap * gap, 1) / P
        scale = 1.0 / tl.sqrt(square + EPS)
        for start in range(0, Q, BLOCK):
            gap, mask, p = _gap(x, row, first, start, P, valid, BLOCK)
            found, squares = _rounded(gap - mean[:, None], mask, scale, own, p, z, Q, valid)
            mu += found
            rounded += squares
    if STATS:  # else the sums above are left out by the compiler
        mu = mu / P
        rounded = rounded / P - mu * mu
        tl.store(stats + own, scale, valid)
        tl.store(stats + size + own, mu, valid)
        length = square * scale * scale / tl.where(rounded > 0, rounded, 1.0)
        tl.store(stats + 2 * size + own, length, valid)
        once = valid & (row < OWN)
        tl.store(layer + channel, tl.zeros([ROWS], tl.int32) + begin, once)
        tl.store(layer + C + channel, tl.zeros([ROWS], tl.int32) + OWN, once)


@jit
@no_type_check
def _product(found, z, a, b, C, Q, steps, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    """`found` + Z_a Z_b^T over `steps` blocks of pixels."""
    p = tl.arange(0, BLOCK)
    ours = z + a.to(tl.int64)[:, None] * Q + p[None, :]
    other = z + b.to(tl.int64)[:, None] * Q + p[None, :]
    for step in range(steps):
        u = tl.load(ours + step * BLOCK, (a < C)[:, None], 0.0)
        v = tl.load(other + step * BLOCK, (b < C)[:, None], 0.0)
        found = matmul(u, tl.trans(v), found, PRECISION)
    return found


@jit
@no_type_check
def gram_kernel(
    student,  # Z [N, C, Q]
    teacher,
    layer,  # [2, C] int32
    stats,  # the student's [3, N, C]
    difference,  # D [N, C, W] times SCALE, both triangles; 0 within a layer and beyond C
    cross,  # [tiles, 2, N, C] float32: sums over the b of a tile of D_ab G_ab(student), D_ab mu_b
    partial,  # [programs] float32
    C, P, Q, W, size, factor,
    SCALE: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(C, TILE)
    image = (tl.program_id(0) // (tiles * tiles)).to(tl.int64)
    i, j = tl.program_id(0) // tiles % tiles, tl.program_id(0) % tiles
    loss = 0.0
    if i <= j:
        a, b = i * TILE + tl.arange(0, TILE), j * TILE + tl.arange(0, TILE)
        # nothing to do where the first row and the last column are of one layer
        begin = tl.load(layer + i * TILE)
        end = tl.load(layer + tl.minimum(j * TILE + TILE, C) - 1)
        steps = tl.where(begin == end, 0, Q // BLOCK)
        kind = difference.dtype.element_ty
        rows = difference + image * C * W
        place = a.to(tl.int64)[:, None] * W + b[None, :]
        inside = (a < C)[:, None] & (b < W)[None, :]
        zeros = tl.zeros([TILE, TILE], tl.float32)
        goal = _product(zeros, teacher + image * C * Q, a, b, C, Q, steps, BLOCK, PRECISION)
        # the teacher's Gram waits where D will be: both products need one set of registers
        tl.store(rows + place, (goal * (SCALE / P)).to(kind), inside)
        gap = _product(-goal, student + image * C * Q, a, b, C, Q, steps, BLOCK, PRECISION) / P
        mine = tl.load(layer + a, a < C, -1)
        theirs = tl.load(layer + b, b < C, -1)
        used = (mine[:, None] != theirs[None, :]) & (a < C)[:, None] & (b < C)[None, :]
        gap = tl.where(used, gap, 0.0)
        loss = tl.sum(gap * gap) * factor
        tl.debug_barrier()
        own = tl.load(rows + place, inside, 0.0).to(tl.float32) * (1.0 / SCALE) + gap
        tl.debug_barrier()
        stored = (gap * SCALE).to(kind)
        tl.store(rows + place, stored, inside)
        if i < j:  # here, not below: `stored` needs no registers beside the sums
            mirrored = b.to(tl.int64)[None, :] * W + a[:, None]
            tl.store(rows + mirrored, stored, (b < C)[None, :])
        gap = stored.to(tl.float32) * (1.0 / SCALE)  # as the backward pass will read it
        own = gap * own
        mu = stats + size + image * C
        slot = cross + j * 2 * size + image * C + a
        tl.store(slot, tl.sum(own, 1), a < C)
        tl.store(slot + size, tl.sum(gap * tl.load(mu + b, b < C, 0.0)[None, :], 1), a < C)
        if i < j:
            slot = cross + i * 2 * size + image * C + b
            tl.store(slot, tl.sum(own, 0), b < C)
            tl.store(slot + size, tl.sum(gap * tl.load(mu + a, a < C, 0.0)[:, None], 0), b < C)
        else:
            loss = loss * 0.5  # both triangles of a diagonal tile are in the sum
    tl.store(partial + tl.program_id(0), loss)


@jit
@no_type_check
def gram_bwd_kernel(
    z,  # the student's [N, C, Q]
    difference, layer, stats,
    cross,  # [2, N, C] float32: r_a = sum_b D_ab G_ab(student), and sum_b D_ab mu_b
    upstream,  # float32 scalar, unless not SCALED
    grad,  # layer by layer, each [N, C_i, P]
    N, C, P, Q, W, factor,
    SCALED: tl.constexpr, SCALE: tl.constexpr, TILE: tl.constexpr, PIXELS: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(C, TILE)
    tile, rest = tl.program_id(0) % tiles, tl.program_id(0) // tiles
    blocks = tl.cdiv(P, PIXELS)
    image = (rest // blocks).to(tl.int64)
    a, p = tile * TILE + tl.arange(0, TILE), rest % blocks * PIXELS + tl.arange(0, PIXELS)
    valid = a < C
    # the blocks of b that lie within the layer of this whole tile are zeros of D: left out
    begin, width = tl.load(layer + tile * TILE), tl.load(layer + C + tile * TILE)
    end = tl.load(layer + tl.minimum(tile * TILE + TILE, C) - 1)
    low = tl.cdiv(begin, BLOCK)
    left_out = tl.where(begin == end, tl.maximum((begin + width) // BLOCK - low, 0), 0)
    rows = difference + (image * C + a)[:, None] * W
    base = z + image * C * Q + p[None, :]
    found = tl.zeros([TILE, PIXELS], tl.float32)
    for step in range(tl.cdiv(C, BLOCK) - left_out):
        b = tl.where(step < low, step, step + left_out) * BLOCK + tl.arange(0, BLOCK)
        u = tl.load(rows + b[None, :], valid[:, None] & (b < W)[None, :], 0.0)
        inside = (b < C)[:, None] & (p < Q)[None, :]
        v = tl.load(base + b.to(tl.int64)[:, None] * Q, inside, 0.0)
        found = matmul(u, v, found, PRECISION)
    mask = valid[:, None] & (p < P)[None, :]
    own = tl.load(base + a.to(tl.int64)[:, None] * Q, mask, 0.0).to(tl.float32)
    row = image * C + a
    mu, mean = tl.load(stats + N * C + row, valid, 0.0), tl.load(cross + N * C + row, valid, 0.0)
    pull = tl.load(cross + row, valid, 0.0) - mu * mean
    pull *= tl.load(stats + 2 * N * C + row, valid, 0.0)
    scale = tl.load(stats + row, valid, 0.0) * factor
    if SCALED:
        scale *= tl.load(upstream)
    found = found * (1.0 / SCALE) - mean[:, None] - pull[:, None] * (own - mu[:, None])
    found *= scale[:, None]
    begin_a = tl.load(layer + a, valid, 0).to(tl.int64)
    width_a = tl.load(layer + C + a, valid, 0)
    place = begin_a * N + image * width_a + (a - begin_a)
    tl.store(grad + place[:, None] * P + p[None, :], found.to(grad.dtype.element_ty), mask)
