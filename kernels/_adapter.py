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
def _read(at, valid, fits, EVEN: tl.constexpr):
    """A tile [pixels, channels]; without masks where every pixel and channel exists."""
    if EVEN:
        return tl.load(at)
    return tl.load(at, valid[:, None] & fits[None, :], 0.0)


@jit
@no_type_check
def _write(at, value, valid, fits, EVEN: tl.constexpr):
    if EVEN:
        tl.store(at, value)
    else:
        tl.store(at, value, valid[:, None] & fits[None, :])


@jit
@no_type_check
def _cosine(dot, ff, tt, EPS: tl.constexpr):
    """Cosine, 1 / |f| and 1 / |t| of each pixel; all 0 where either map is dead."""
    alive = tl.minimum(ff, tt) > EPS * EPS
    inv_f = tl.where(alive, tl.rsqrt(tl.maximum(ff, EPS * EPS)), 0.0)
    inv_t = tl.where(alive, tl.rsqrt(tl.maximum(tt, EPS * EPS)), 0.0)
    return dot * inv_f * inv_t, inv_f, inv_t


@jit
@no_type_check
def _sum_pixels(e, inv_f, total, like, PREC: tl.constexpr, CORES: tl.constexpr):
    """total [channels, 16] + the sum of e / |f| over pixels, in its first column.

    CORES: by tensor cores; a sum over the rows of a product's result goes through shared memory,
    but leaves more registers than a threefold product of float32.
    """
    first = tl.arange(0, 16)[None, :] == 0
    if not CORES:
        return total + tl.where(first, tl.sum(e * inv_f[:, None], 0)[:, None], 0.0)
    column = tl.where(first, inv_f[:, None], 0.0)
    return matmul(tl.trans(e), narrow(column, like), total, PREC)


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
    grad,  # like student, from `grad_at` on
    partial,  # from `partial_at` on: [programs, CT * CS + CT + 1] float32, or [programs, 1]
    pooled_s, pooled_t, arg,  # [N, CT, windows]
    images, grad_at, partial_at,
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, ADAPT: tl.constexpr, BIAS: tl.constexpr,
    GRAD: tl.constexpr, EMIT: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
    CSP: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr, EPS: tl.constexpr,
    EVEN: tl.constexpr, EYE: tl.constexpr,
):  # fmt: skip
    """All of the teacher's channels in one tile: every output in one pass."""
    c, k = tl.arange(0, BT), tl.arange(0, CSP)
    kind = student.dtype.element_ty
    blocks = count(P, H, W, EMIT, K, KP, BP)
    loss = tl.zeros([BP], tl.float32)
    if ADAPT:
        fits = (c < CT)[:, None] & (k < CS)[None, :]
        w = tl.load(weight + c[:, None] * CS + k[None, :], fits, 0.0).to(kind)
        b = _bias(bias, c, CT, BIAS)
        dw = tl.zeros([BT, CSP], tl.float32)
        db = tl.zeros([BT, 16], tl.float32)
        zero = tl.zeros([BP, BT], tl.float32)
        eye = (c[:, None] == c[None, :]).to(tl.float32).to(kind)
    for later in range(0, images * blocks - tl.program_id(0), tl.num_programs(0)):
        place = tl.program_id(0) + later
        image, block = (place // blocks).to(tl.int64), place % blocks
        first, lane, valid = locate(block, P, H, W, K, KP, BP)
        at_s = tile(student, image, first, lane, k, CS, P, LAST_S)
        x = _read(at_s, valid, k < CS, EVEN)
        t = _read(tile(teacher, image, first, lane, c, CT, P, LAST_T), valid, c < CT, EVEN)
        if EYE:  # exact, and leaves t in the registers where a product leaves f
            t = matmul(t, eye, zero, PREC)
        t = t.to(tl.float32)
        if ADAPT:
            f = tl.maximum(matmul(x, tl.trans(w), b[None, :] + zero, PREC), 0.0)
        else:
            f = x.to(tl.float32)
        if EMIT:
            _emit(f, t, pooled_s, pooled_t, arg, image, block, c, valid, images, CT, H, W, K, KP,
                  BP, BT)  # fmt: skip
        cosine, inv_f, inv_t = _cosine(tl.sum(f * t, 1), tl.sum(f * f, 1), tl.sum(t * t, 1), EPS)
        loss += 1.0 - cosine if EVEN else tl.where(valid, 1.0 - cosine, 0.0)
        if GRAD:
            e = f * (cosine * inv_f)[:, None] - t * inv_t[:, None]
            if ADAPT:
                e = tl.where(f > 0, e, 0.0).to(kind)
                dx = matmul(e, w, tl.zeros([BP, CSP], tl.float32), PREC) * inv_f[:, None]
                scaled = narrow(x.to(tl.float32) * inv_f[:, None], student)
                dw = matmul(tl.trans(e), scaled, dw, PREC)
                db = _sum_pixels(e, inv_f, db, student, PREC, True)
            else:
                dx = e * inv_f[:, None]
            out = tile(grad + grad_at, image, first, lane, k, CS, P, LAST_S)
            _write(out, narrow(dx, grad), valid, k < CS, EVEN)
    row = partial + partial_at + tl.program_id(0) * ((CT * CS + CT) * (ADAPT and GRAD) + 1)
    if ADAPT and GRAD:
        tl.store(row + c[:, None] * CS + k[None, :], dw, fits)
        tl.store(row + CT * CS + c, tl.sum(db, 1), c < CT)
        row += CT * CS + CT
    tl.store(row, tl.sum(loss, 0))


@jit
@no_type_check
def _distances(
    student, teacher, weight, bias, grad, stats, pooled_s, pooled_t, arg, images,
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, BIAS: tl.constexpr, GRAD: tl.constexpr,
    EMIT: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, CSP: tl.constexpr, CTP: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr, EPS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """This program's sum of distances; e is linear in W^T [f > 0] t and W^T f, chunk by chunk."""
    k, every = tl.arange(0, CSP), tl.arange(0, CTP)
    biases = _bias(bias, every, CT, BIAS)
    longest = tl.sqrt(tl.sum(biases * biases, 0)) + 1e-30
    blocks = count(P, H, W, EMIT, K, KP, BP)
    zero = tl.zeros([BP, BT], tl.float32)
    loss = tl.zeros([BP], tl.float32)
    for later in range(0, images * blocks - tl.program_id(0), tl.num_programs(0)):
        place = tl.program_id(0) + later
        image, block = (place // blocks).to(tl.int64), place % blocks
        first, lane, valid = locate(block, P, H, W, K, KP, BP)
        x = _read(tile(student, image, first, lane, k, CS, P, LAST_S), valid, k < CS, EVEN)
        wide = x.to(tl.float32)
        size = tl.sqrt(tl.sum(wide * wide, 1)) + longest
        inv_size = 1.0 / size
        dot = tl.zeros([BP], tl.float32)
        ff = tl.zeros([BP], tl.float32)
        tt = tl.zeros([BP], tl.float32)
        u = tl.zeros([BP, CSP], tl.float32)
        v = tl.zeros([BP, CSP], tl.float32)
        for start in range(0, CT, BT):
            c = start + tl.arange(0, BT)
            w = _read(weight + c[:, None] * CS + k[None, :], c < CT, k < CS, EVEN).to(x.dtype)
            b = _bias(bias, c, CT, BIAS)
            at_t = tile(teacher, image, first, lane, c, CT, P, LAST_T)
            own = _read(at_t, valid, c < CT, EVEN)
            t = own.to(tl.float32)
            f = tl.maximum(matmul(x, tl.trans(w), b[None, :] + zero, PREC), 0.0)
            dot += tl.sum(f * t, 1)
            ff += tl.sum(f * f, 1)
            tt += tl.sum(t * t, 1)
            if EMIT:
                _emit(f, t, pooled_s, pooled_t, arg, image, block, c, valid, images, CT, H, W, K,
                      KP, BP, BT)  # fmt: skip
            if GRAD:
                u = matmul(tl.where(f > 0, own, 0.0).to(x.dtype), w, u, PREC)
                # f / size is bounded by the norm of W, so it fits float16
                v = matmul((f * inv_size[:, None]).to(x.dtype), w, v, PREC)
        cosine, inv_f, inv_t = _cosine(dot, ff, tt, EPS)
        loss += tl.where(valid, 1.0 - cosine, 0.0)
        if GRAD:
            dx = v * (size * cosine * inv_f)[:, None] - u * inv_t[:, None]
            out = tile(grad, image, first, lane, k, CS, P, LAST_S)
            _write(out, narrow(dx * inv_f[:, None], grad), valid, k < CS, EVEN)
            row = stats + image * (3 * P) + first + lane
            tl.store(row, cosine, valid)
            tl.store(row + P, inv_f, valid)
            tl.store(row + 2 * P, inv_t, valid)
    return tl.sum(loss, 0)


@jit
@no_type_check
def _parameters(
    student, teacher, weight, bias, stats, row, images, chunk, part, parts,
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, BIAS: tl.constexpr, EMIT: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, CSP: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr,
    PREC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The adapter's gradients for a chunk of channels and a part of the pixels, the last first."""
    kind = student.dtype.element_ty
    c, k = chunk * BT + tl.arange(0, BT), tl.arange(0, CSP)
    at_w = c[:, None] * CS + k[None, :]
    w = _read(weight + at_w, c < CT, k < CS, EVEN).to(kind)
    b = _bias(bias, c, CT, BIAS)
    dw = tl.zeros([BT, CSP], tl.float32)
    db = tl.zeros([BT, 16], tl.float32)
    zero = tl.zeros([BP, BT], tl.float32)
    blocks = count(P, H, W, EMIT, K, KP, BP)
    own = tl.cdiv(images * blocks - part, parts)
    for step in range(own):  # backwards: of what was read before, L2 still has the end
        place = part + (own - 1 - step) * parts
        image, block = (place // blocks).to(tl.int64), place % blocks
        first, lane, valid = locate(block, P, H, W, K, KP, BP)
        x = _read(tile(student, image, first, lane, k, CS, P, LAST_S), valid, k < CS, EVEN)
        at_t = tile(teacher, image, first, lane, c, CT, P, LAST_T)
        t = _read(at_t, valid, c < CT, EVEN).to(tl.float32)
        at = stats + image * (3 * P) + first + lane
        cosine = tl.load(at, valid, 0.0)
        inv_f = tl.load(at + P, valid, 0.0)
        inv_t = tl.load(at + 2 * P, valid, 0.0)
        f = tl.maximum(matmul(x, tl.trans(w), b[None, :] + zero, PREC), 0.0)
        e = tl.where(f > 0, f * (cosine * inv_f)[:, None] - t * inv_t[:, None], 0.0).to(kind)
        scaled = narrow(x.to(tl.float32) * inv_f[:, None], student)
        db = _sum_pixels(e, inv_f, db, student, PREC, kind != tl.float32)
        dw = matmul(tl.trans(e), scaled, dw, PREC)
    _write(row + at_w, dw, c < CT, k < CS, EVEN)
    tl.store(row + CT * CS + c, tl.sum(db, 1), c < CT)


@jit
@no_type_check
def wide_kernel(
    student, teacher, weight, bias, grad,
    partial,  # [programs, CT * CS + CT + 1] float32 where FUSED, else [programs, 1]
    pooled_s, pooled_t, arg, images, grad_at, partial_at,
    stats_at,  # in `partial`: [N, 3, P] of cosine, 1 / |f|, 1 / |t|
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, BIAS: tl.constexpr, GRAD: tl.constexpr,
    EMIT: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, CSP: tl.constexpr, CTP: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, BW: tl.constexpr, PREC: tl.constexpr, EPS: tl.constexpr,
    EVEN: tl.constexpr, FUSED: tl.constexpr,
):  # fmt: skip
    """The distances, the teacher's channels in chunks; FUSED: the adapter's gradients after."""
    stats = partial + stats_at
    row = partial + partial_at + tl.program_id(0) * ((CT * CS + CT) * FUSED + 1)
    loss = _distances(
        student, teacher, weight, bias, grad + grad_at, stats, pooled_s, pooled_t, arg, images, CS,
        CT, P, H, W, LAST_S, LAST_T, BIAS, GRAD, EMIT, K, KP, CSP, CTP, BT, BP, PREC, EPS, EVEN,
    )  # fmt: skip
    tl.store(row + (CT * CS + CT) * FUSED, loss)
    if FUSED:
        tl.debug_barrier()  # `stats` is written by other threads than those that read it
        for chunk in range((CT + BW - 1) // BW):
            _parameters(
                student, teacher, weight, bias, stats, row, images, chunk, tl.program_id(0),
                tl.num_programs(0), CS, CT, P, H, W, LAST_S, LAST_T, BIAS, EMIT, K, KP, CSP, BW,
                BP, PREC, EVEN,
            )  # fmt: skip


@jit
@no_type_check
def weight_kernel(
    student, teacher, weight, bias,
    partial,  # [splits, CT * CS + CT] float32 from `partial_at` on
    images, splits, partial_at, stats_at,
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr,
    LAST_S: tl.constexpr, LAST_T: tl.constexpr, BIAS: tl.constexpr, CSP: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The adapter's gradients where no program holds the registers for both."""
    chunks: tl.constexpr = (CT + BT - 1) // BT
    split = tl.program_id(0) // chunks
    row = partial + partial_at + split * (CT * CS + CT)
    _parameters(
        student, teacher, weight, bias, partial + stats_at, row, images, tl.program_id(0) % chunks,
        split, splits, CS, CT, P, P, 1, LAST_S, LAST_T, BIAS, False, 1, 1, CSP, BT, BP, PREC, EVEN,
    )  # fmt: skip
