"""The Triton kernels that pool a map window by window, with the index of each maximum, and back."""

from typing import no_type_check

from kdcompile.kernels._runtime import jit, tl


@jit
@no_type_check
def _windows(
    C, P, OW, H, W, K: tl.constexpr, J: tl.constexpr, LAST: tl.constexpr, RAGGED: tl.constexpr,
    CH: tl.constexpr, WIN: tl.constexpr,
):  # fmt: skip
    """Image, channels [CH], windows [WIN] with their first row and column, columns [J]; sizes."""
    if not RAGGED:  # known multiples of K: wide accesses whatever the size
        H, W = P // OW * K, OW * K
    blocks, groups = tl.cdiv(P, WIN), tl.cdiv(C, CH)
    inside = tl.program_id(0) % (blocks * groups)
    block, group = inside % blocks, inside // blocks
    if LAST:  # neighbours in memory are neighbours in time
        block, group = inside // groups, inside % groups
    w = block * WIN + tl.arange(0, WIN)
    c = group * CH + tl.arange(0, CH)
    image = (tl.program_id(0) // (blocks * groups)).to(tl.int64)
    return image, c, w, w // OW * K, w % OW * K, tl.arange(0, J), H, W


@jit
@no_type_check
def _pooled(image, c, w, C, P):
    """Address [CH, WIN] of the windows in a pooled map, and mask."""
    place = ((image * C + c) * P)[:, None] + w[None, :]
    return place, (c < C)[:, None] & (w < P)[None, :]


@jit
@no_type_check
def _element(
    image, c, w, top, left, j, step, C, H, W, P,
    K: tl.constexpr, LAST: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Address [CH, WIN, J] of a step within the windows, mask, and index within a window.

    A step is one row of each window, or one element of each where channels lie innermost.
    """
    i, column = step, j
    if LAST:
        i, column = step // K, step % K + j
    y = (top + i)[None, :, None]
    x = left[None, :, None] + column[None, None, :]
    mask = (c < C)[:, None, None] & (w < P)[None, :, None]
    if RAGGED:
        mask = mask & (column < K)[None, None, :] & (y < H) & (x < W)
    if LAST:
        place = (image * H * W + y * W + x) * C + c[:, None, None]
    else:
        place = ((image * C + c) * H * W)[:, None, None] + (y * W + x)
    return place, mask, (i * K + column)[None, None, :]


@jit
@no_type_check
def pool_kernel(
    x,  # [N, C, H, W] in either memory format
    pooled,  # [N, C, P]
    arg,  # [N, C, P] integers: row-major index of the maximum in its window, unless ARG is False
    C, H, W, OW, P,
    K: tl.constexpr, J: tl.constexpr, UNROLL: tl.constexpr, LAST: tl.constexpr,
    RAGGED: tl.constexpr, ARG: tl.constexpr, CH: tl.constexpr, WIN: tl.constexpr,
):  # fmt: skip
    image, c, w, top, left, j, H, W = _windows(C, P, OW, H, W, K, J, LAST, RAGGED, CH, WIN)
    most = tl.full([CH, WIN, J], float("-inf"), tl.float32)
    where = tl.zeros([CH, WIN, J], tl.int32)
    for start in range(0, K * K if LAST else K, UNROLL):
        for u in tl.static_range(UNROLL):  # so many loads are under way together
            place, mask, index = _element(
                image, c, w, top, left, j, start + u, C, H, W, P, K, LAST, RAGGED
            )
            value = tl.load(x + place, mask, float("-inf")).to(tl.float32)
            higher = (value > most) | (value != value)  # NaN stays, as in PyTorch
            most = tl.where(higher, value, most)
            if ARG:
                where = tl.where(higher, index, where)
    found = tl.max(most, 2)
    lost = tl.max((most != most).to(tl.int32), 2) > 0
    place, mask = _pooled(image, c, w, C, P)
    tl.store(pooled + place, tl.where(lost, float("nan"), found).to(pooled.dtype.element_ty), mask)
    if ARG:
        first = tl.min(tl.where(most == found[:, :, None], where, K * K), 2)
        tl.store(arg + place, first.to(arg.dtype.element_ty), mask)


@jit
@no_type_check
def unpool_kernel(
    pooled,  # [N, C, P]: gradient of the pooled map
    arg,  # as `pool_kernel` wrote it, unless ARG is False
    grad,  # [N, C, H, W] in either memory format; every element is written
    C, H, W, OW, P,
    K: tl.constexpr, J: tl.constexpr, UNROLL: tl.constexpr, LAST: tl.constexpr,
    RAGGED: tl.constexpr, ARG: tl.constexpr, CH: tl.constexpr, WIN: tl.constexpr,
):  # fmt: skip
    image, c, w, top, left, j, H, W = _windows(C, P, OW, H, W, K, J, LAST, RAGGED, CH, WIN)
    place, mask = _pooled(image, c, w, C, P)
    value = tl.load(pooled + place, mask, 0.0)[:, :, None].to(grad.dtype.element_ty)
    value = tl.broadcast_to(value, [CH, WIN, J])
    where = tl.zeros([CH, WIN, 1], tl.int32)
    if ARG:
        where = tl.load(arg + place, mask, 0)[:, :, None].to(tl.int32)
    for start in range(0, K * K if LAST else K, UNROLL):
        for u in tl.static_range(UNROLL):
            target, inside, index = _element(
                image, c, w, top, left, j, start + u, C, H, W, P, K, LAST, RAGGED
            )
            tl.store(grad + target, tl.where(where == index, value, 0.0), inside)
