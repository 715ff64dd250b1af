"""Forward passes of the adapter, its cosine distance and, on request, the pooled maps.

Everything is pixel-major: a block of BP pixels is [BP, channels], so that the products have the
pixels as their long side. With f = relu(W x + b), t the teacher, c their cosine at a pixel:

    d (1 - c) / d f = e / |f|,   e = [f > 0] (c f / |f| - t / |t|)

e has entries of at most 1, so it is safe to round; 1 / |f| is applied in float32 afterwards. The
gradients are those of the plain sum over all pixels: no 1 / N in them.
"""

from typing import no_type_check

from kdcompile.kernels._maps import matmul
from kdcompile.kernels._runtime import jit, tl

EPS = 1e-6  # a map of smaller norm at a pixel is dead there: distance 1, no gradient


@jit
@no_type_check
def locate(
    block, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    BP: tl.constexpr,
):  # fmt: skip
    """First pixel of a block, the others relative to it, and which exist.

    If K > 1 a block is whole K x K windows (padded to KP x KP) one after another, from pixel 0.
    """
    lane = tl.arange(0, BP)
    if K == 1:
        return block * BP, lane, block * BP + lane < P
    across: tl.constexpr = (W + K - 1) // K
    window = block * (BP // (KP * KP)) + lane // (KP * KP)
    row, column = (lane // KP) % KP, lane % KP
    valid = (row < K) & (column < K)
    row += (window // across) * K
    column += (window % across) * K
    return block * 0, row * W + column, valid & (row < H) & (column < W)


@jit
@no_type_check
def count(
    P: tl.constexpr, H: tl.constexpr, W: tl.constexpr, EMIT: tl.constexpr, K: tl.constexpr,
    KP: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Blocks of an image."""
    if EMIT:
        return tl.cdiv(tl.cdiv(H, K) * tl.cdiv(W, K), BP // (KP * KP))
    return tl.cdiv(P, BP)


@jit
@no_type_check
def tile(
    pointer, image, first, lane, channel, C: tl.constexpr, P: tl.constexpr, LAST: tl.constexpr
):
    """Addresses [pixels, channels] of a map [N, C, P]: 64 bits to its corner, few from there."""
    if C * P >= 2**31:
        lane, channel = lane.to(tl.int64), channel.to(tl.int64)
    if LAST:
        corner = pointer + image * (C * P) + first.to(tl.int64) * C
        return corner + (lane[:, None] * C + channel[None, :])
    return pointer + image * (C * P) + first + (channel[None, :] * P + lane[:, None])


@jit
@no_type_check
def _cosine(dot, ff, tt, EPS: tl.constexpr):
    """Cosine, 1 / |f| and 1 / |t| of each pixel; all 0 where either map is dead."""
    alive = (ff > EPS * EPS) & (tt > EPS * EPS)
    inv_f = tl.where(alive, 1.0 / tl.sqrt(tl.maximum(ff, EPS * EPS)), 0.0)
    inv_t = tl.where(alive, 1.0 / tl.sqrt(tl.maximum(tt, EPS * EPS)), 0.0)
    return dot * inv_f * inv_t, inv_f, inv_t


@jit
@no_type_check
def narrow(value, like):
    """`value` in the element type of a pointer; float16 saturates instead of overflowing."""
    if like.dtype.element_ty == tl.float16:
        value = tl.minimum(tl.maximum(value, -65504.0), 65504.0)
    return value.to(like.dtype.element_ty)


@jit
@no_type_check
def product(a, b, total, like, PREC: tl.constexpr):
    """total + a @ b of values that may not fit float16: TF32 has its precision and more range."""
    if like.dtype.element_ty == tl.float16:
        return matmul(a.to(tl.float32), b.to(tl.float32), total, "tf32")
    kind = like.dtype.element_ty
    return matmul(a.to(kind), b.to(kind), total, PREC)


@jit
@no_type_check
def _bias(bias, c, CT, BIAS: tl.constexpr):
    value = (c * 0).to(tl.float32)
    if BIAS:
        value = tl.load(bias + c, c < CT, 0.0).to(tl.float32)
    return value


@jit
@no_type_check
def _emit(
    f, t, pooled_s, pooled_t, arg, image, block, c, valid, images,
    CT: tl.constexpr, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    BP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Store the largest f and t of each window, and where f's is (255: not above 0)."""
    SPAN: tl.constexpr = KP * KP
    COUNT: tl.constexpr = BP // SPAN
    WINDOWS: tl.constexpr = ((H + K - 1) // K) * ((W + K - 1) // K)
    window = block * COUNT + tl.arange(0, COUNT)
    mask = (window < tl.where(image < images, WINDOWS, 0))[:, None] & (c < CT)[None, :]
    place = image * (CT * WINDOWS) + c[None, :] * WINDOWS + window[:, None]
    f = tl.reshape(tl.where(valid[:, None], f, -1.0), [COUNT, SPAN, BT])
    t = tl.reshape(tl.where(valid[:, None], t, float("-inf")), [COUNT, SPAN, BT])
    top = tl.max(f, 1)
    lane = tl.arange(0, SPAN)[None, :, None]
    first = tl.min(tl.where(f == top[:, None, :], lane, 255), 1)
    first = tl.where(top > 0, first, 255)
    tl.store(pooled_s + place, top.to(pooled_s.dtype.element_ty), mask)
    tl.store(pooled_t + place, tl.max(t, 1).to(pooled_t.dtype.element_ty), mask)
    tl.store(arg + place, first.to(tl.uint8), mask)


@jit
@no_type_check
def whole_kernel(
    student,  # [N, CS, P]
    teacher,  # [N, CT, P]
    weight,  # [CT, CS]
    bias,  # [CT]
    grad,  # like student
    partial,  # [programs, CT * CS + CT + 1] float32, or [programs, 1] without an adapter
    pooled_s, pooled_t, arg,  # [N, CT, windows]
    images, steps, factor,
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, ADAPT: tl.constexpr, BIAS: tl.constexpr,
    GRAD: tl.constexpr, EMIT: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    CSP: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """All of the teacher's channels in one tile: every output in one pass."""
    c, k = tl.arange(0, BT), tl.arange(0, CSP)
    blocks = count(P, H, W, EMIT, K, KP, BP)
    loss = tl.zeros([BP], tl.float32)
    if ADAPT:
        fits = (c < CT)[:, None] & (k < CS)[None, :]
        w = tl.load(weight + c[:, None] * CS + k[None, :], fits, 0.0)
        w = w.to(student.dtype.element_ty)
        b = _bias(bias, c, CT, BIAS)
        dw = tl.zeros([BT, CSP], tl.float32)
        db = tl.zeros([BT], tl.float32)
        zero = tl.zeros([BP, BT], tl.float32)
    for step in range(steps):
        place = tl.program_id(0) * steps + step
        image, block = (place // blocks).to(tl.int64), place % blocks
        first, lane, valid = locate(block, P, H, W, K, KP, BP)
        valid = valid & (first + lane < tl.where(image < images, P, 0))  # the last has fewer steps
        at_s = tile(student, image, first, lane, k, CS, P, LAST_S)
        x = tl.load(at_s, valid[:, None] & (k < CS)[None, :], 0.0)
        at_t = tile(teacher, image, first, lane, c, CT, P, LAST_T)
        t = tl.load(at_t, valid[:, None] & (c < CT)[None, :], 0.0).to(tl.float32)
        if ADAPT:
            f = tl.maximum(matmul(x, tl.trans(w), b[None, :] + zero, PREC), 0.0)
        else:
            f = x.to(tl.float32)
        if EMIT:
            _emit(f, t, pooled_s, pooled_t, arg, image, block, c, valid, images, CT, H, W, K, KP,
                  BP, BT)  # fmt: skip
        cosine, inv_f, inv_t = _cosine(tl.sum(f * t, 1), tl.sum(f * f, 1), tl.sum(t * t, 1), EPS)
        loss += tl.where(valid, 1.0 - cosine, 0.0)
        if GRAD:
            e = f * (cosine * inv_f)[:, None] - t * inv_t[:, None]
            if ADAPT:
                e = tl.where(f > 0, e, 0.0)
                dx = (
                    matmul(e.to(w.dtype), w, tl.zeros([BP, CSP], tl.float32), PREC) * inv_f[:, None]
                )
                scaled = x.to(tl.float32) * inv_f[:, None]
                dw = product(tl.trans(e), scaled, dw, student, PREC)
                db += tl.sum(e * inv_f[:, None], 0)
            else:
                dx = e * inv_f[:, None]
            out = tile(grad, image, first, lane, k, CS, P, LAST_S)
            tl.store(out, narrow(dx, grad), valid[:, None] & (k < CS)[None, :])
    row = partial + tl.program_id(0).to(tl.int64) * ((CT * CS + CT) * (ADAPT and GRAD) + 1)
    if ADAPT and GRAD:
        tl.store(row + c[:, None] * CS + k[None, :], dw, fits)
        tl.store(row + CT * CS + c, db, c < CT)
        row += CT * CS + CT
    tl.store(row, tl.sum(loss, 0) * factor)


@jit
@no_type_check
def chunked_kernel(
    student, teacher, weight, bias, grad,
    stats,  # [N, 3, P] float32: cosine, 1 / |f|, 1 / |t|
    partial,  # [programs] float32
    pooled_s, pooled_t, arg,
    images, factor,
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, BIAS: tl.constexpr, GRAD: tl.constexpr,
    EMIT: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, CSP: tl.constexpr, CTP: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    """The teacher's channels chunk by chunk, read once: e is linear in W^T [f > 0] t and W^T f."""
    blocks = count(P, H, W, EMIT, K, KP, BP)
    image, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    first, lane, valid = locate(block, P, H, W, K, KP, BP)
    k = tl.arange(0, CSP)
    at_s = tile(student, image, first, lane, k, CS, P, LAST_S)
    x = tl.load(at_s, valid[:, None] & (k < CS)[None, :], 0.0)
    every = tl.arange(0, CTP)
    biases = _bias(bias, every, CT, BIAS)
    wide = x.to(tl.float32)
    size = tl.sqrt(tl.sum(wide * wide, 1)) + tl.sqrt(tl.sum(biases * biases, 0)) + 1e-30
    dot = tl.zeros([BP], tl.float32)
    ff = tl.zeros([BP], tl.float32)
    tt = tl.zeros([BP], tl.float32)
    u = tl.zeros([BP, CSP], tl.float32)
    v = tl.zeros([BP, CSP], tl.float32)
    zero = tl.zeros([BP, BT], tl.float32)
    for start in range(0, CT, BT):
        c = start + tl.arange(0, BT)
        fits = (c < CT)[:, None] & (k < CS)[None, :]
        w = tl.load(weight + c[:, None] * CS + k[None, :], fits, 0.0).to(x.dtype)
        b = _bias(bias, c, CT, BIAS)
        at_t = tile(teacher, image, first, lane, c, CT, P, LAST_T)
        own = tl.load(at_t, valid[:, None] & (c < CT)[None, :], 0.0)
        t = own.to(tl.float32)
        f = tl.maximum(matmul(x, tl.trans(w), b[None, :] + zero, PREC), 0.0)
        dot += tl.sum(f * t, 1)
        ff += tl.sum(f * f, 1)
        tt += tl.sum(t * t, 1)
        if EMIT:
            _emit(f, t, pooled_s, pooled_t, arg, image, block, c, valid, images, CT, H, W, K, KP,
                  BP, BT)  # fmt: skip
        if GRAD:
            u = matmul(tl.where(f > 0, own, 0.0).to(x.dtype), w, u, PREC)
            # f / size is bounded by the norm of W, so it fits float16
            v = matmul((f / size[:, None]).to(x.dtype), w, v, PREC)
    cosine, inv_f, inv_t = _cosine(dot, ff, tt, EPS)
    tl.store(partial + tl.program_id(0), tl.sum(tl.where(valid, 1.0 - cosine, 0.0), 0) * factor)
    if GRAD:
        dx = v * (size * cosine * inv_f)[:, None] - u * inv_t[:, None]
        out = tile(grad, image, first, lane, k, CS, P, LAST_S)
        tl.store(out, narrow(dx * inv_f[:, None], grad), valid[:, None] & (k < CS)[None, :])
        row = stats + image * (3 * P) + first + lane
        tl.store(row, cosine, valid)
        tl.store(row + P, inv_f, valid)
        tl.store(row + 2 * P, inv_t, valid)


@jit
@no_type_check
def weight_kernel(
    student, teacher, weight, bias, stats,
    partial,  # [splits, CT * CS + CT] float32
    images, steps,
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, BIAS: tl.constexpr, CSP: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """The adapter's gradients, for a chunk of the teacher's channels and a share of the pixels."""
    chunks, blocks = tl.cdiv(CT, BT), tl.cdiv(P, BP)
    chunk, split = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    c, k = chunk * BT + tl.arange(0, BT), tl.arange(0, CSP)
    fits = (c < CT)[:, None] & (k < CS)[None, :]
    w = tl.load(weight + c[:, None] * CS + k[None, :], fits, 0.0).to(student.dtype.element_ty)
    b = _bias(bias, c, CT, BIAS)
    dw = tl.zeros([BT, CSP], tl.float32)
    db = tl.zeros([BT], tl.float32)
    zero = tl.zeros([BP, BT], tl.float32)
    for step in range(steps):
        place = split * steps + step
        image, block = (place // blocks).to(tl.int64), place % blocks
        first, lane, valid = locate(block, P, P, 1, 1, 1, BP)
        valid = valid & (first + lane < tl.where(image < images, P, 0))
        at_s = tile(student, image, first, lane, k, CS, P, LAST_S)
        x = tl.load(at_s, valid[:, None] & (k < CS)[None, :], 0.0)
        at_t = tile(teacher, image, first, lane, c, CT, P, LAST_T)
        t = tl.load(at_t, valid[:, None] & (c < CT)[None, :], 0.0).to(tl.float32)
        row = stats + image * (3 * P) + first + lane
        cosine = tl.load(row, valid, 0.0)
        inv_f = tl.load(row + P, valid, 0.0)
        inv_t = tl.load(row + 2 * P, valid, 0.0)
        f = tl.maximum(matmul(x, tl.trans(w), b[None, :] + zero, PREC), 0.0)
        e = tl.where(f > 0, f * (cosine * inv_f)[:, None] - t * inv_t[:, None], 0.0)
        dw = product(tl.trans(e), x.to(tl.float32) * inv_f[:, None], dw, student, PREC)
        db += tl.sum(e * inv_f[:, None], 0)
    row = partial + split.to(tl.int64) * (CT * CS + CT)
    tl.store(row + c[:, None] * CS + k[None, :], dw, fits)
    tl.store(row + CT * CS + c, db, c < CT)
