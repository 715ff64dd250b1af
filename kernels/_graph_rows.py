"""The jitted parts of `token_graph` that take each token by itself: scale it, and the way back."""

from typing import no_type_check

from kdcompile.kernels._maps import offsets
from kdcompile.kernels._runtime import jit, tl


@jit
@no_type_check
def _shrink(
    pointer, near, scale, inverse, graph, token, M, D, PADDED,
    LAST: tl.constexpr, STRIDE: tl.constexpr, EPS: tl.constexpr, INVERSE: tl.constexpr,
):  # fmt: skip
    """Tokens times a power of two, of length 1 to 2, as padded rows; what is left of 1 / |f|."""
    k = tl.arange(0, STRIDE)
    place = offsets(graph, k[None, :], token[:, None], D, M, LAST)
    inside = (token < M)[:, None] & (k < D)[None, :]
    f = tl.load(pointer + place, inside, 0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(f * f, 1))
    seen = length > EPS
    length = tl.where(seen, length, 1.0)
    power = 0x7F000000 - (length.to(tl.int32, bitcast=True) & 0x7F800000)
    power = power.to(tl.float32, bitcast=True)
    row = graph * PADDED + token
    f = tl.where(seen[:, None], f * power[:, None], 0.0)
    tl.store(near + row[:, None] * STRIDE + k[None, :], f.to(near.dtype.element_ty))
    tl.store(scale + row, tl.where(seen, 1.0 / (length * power), 0.0))
    if INVERSE:
        tl.store(inverse + row, tl.where(seen, 1.0 / length, 0.0))


@jit
@no_type_check
def _token_rows_kernel(
    student,  # [G, M, d_S], or [G, d_S, M] in memory unless LAST_S
    teacher,  # [G, M, d_T]
    near_s,  # [G * PADDED, STRIDE_S]
    near_t,
    scales,  # [3, G * PADDED] float32: what is left of 1 / |f| for s and t, and all of it for s
    lse,  # [4, G * PADDED] float32: 0 beyond M
    M, D_S, D_T, PADDED, size,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, STRIDE_S: tl.constexpr, STRIDE_T: tl.constexpr,
    EPS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    blocks = PADDED // ROWS
    graph = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    inverse = scales + 2 * size
    _shrink(
        student, near_s, scales, inverse, graph, token, M, D_S, PADDED, LAST_S, STRIDE_S, EPS, True
    )
    _shrink(
        teacher, near_t, scales + size, inverse, graph, token, M, D_T, PADDED, LAST_T, STRIDE_T,
        EPS, False,
    )  # fmt: skip
    for plane in tl.static_range(4):
        place = lse + plane * size + graph * PADDED + token
        tl.store(place, tl.zeros([ROWS], tl.float32), token >= M)


@jit
@no_type_check
def _token_rows_bwd_kernel(
    pull, near, scales, upstream, grad, M, D, PADDED, size, factor,
    LAST: tl.constexpr, STRIDE: tl.constexpr, SPLITS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Through the normalisation: (du - (du . u) u) / |f|."""
    blocks = tl.cdiv(M, ROWS)
    graph = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    row = graph * PADDED + token
    k = tl.arange(0, STRIDE)
    inside = (token < M)[:, None] & (k < D)[None, :]
    place = row[:, None] * STRIDE + k[None, :]
    du = tl.zeros([ROWS, STRIDE], tl.float32)
    for split in range(SPLITS):
        du += tl.load(pull + split * size.to(tl.int64) * STRIDE + place, inside, 0.0)
    u = tl.load(near + place, inside, 0.0).to(tl.float32) * tl.load(scales + row)[:, None]
    inverse = tl.load(scales + 2 * size + row) * (tl.load(upstream) * factor)
    df = (du - tl.sum(du * u, 1)[:, None] * u) * inverse[:, None]
    target = offsets(graph, k[None, :], token[:, None], D, M, LAST)
    tl.store(grad + target, df.to(grad.dtype.element_ty), inside)
