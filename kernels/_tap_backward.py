"""Backward pass of `skt_tap` for one tap: both transfers' gradients through the adapter."""

from typing import Any, no_type_check

import torch
from torch import Tensor

from kdcompile.kernels._adapter import count, locate, narrow, product, tile
from kdcompile.kernels._adapter_launch import SPREAD
from kdcompile.kernels._maps import ceil_div, is_last, matmul, power_of_two
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Compilation
from kdcompile.kernels._runtime import dot_precision, jit, tl
from kdcompile.kernels._tune import Config, best, shape_class

CONFIGS: tuple[Config, ...] = (
    {"BP": 128, "BT": 64, "num_warps": 4, "num_stages": 2},
    {"BP": 64, "BT": 64, "num_warps": 8, "num_stages": 2},
    {"BP": 32, "BT": 64, "num_warps": 4, "num_stages": 2},
    {"BP": 64, "BT": 32, "num_warps": 8, "num_stages": 3},
    {"BP": 128, "BT": 32, "num_warps": 4, "num_stages": 2},
)
WIDE_CONFIGS: tuple[Config, ...] = (  # float32
    {"BP": 32, "BT": 16, "num_warps": 8, "num_stages": 2},
    {"BP": 16, "BT": 32, "num_warps": 8, "num_stages": 2},
)


@jit
@no_type_check
def _pull(
    pooled, arg, image, block, c, images, CT: tl.constexpr, H: tl.constexpr,
    W: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, BP: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Gradient [BP, channels] of the adapted map: that of its window's maximum, at the maximum."""
    WINDOWS: tl.constexpr = ((H + K - 1) // K) * ((W + K - 1) // K)
    OWN: tl.constexpr = BP // (KP * KP)  # windows of this block: each is loaded once
    window = block * OWN + tl.arange(0, OWN)
    inside = (window < tl.where(image < images, WINDOWS, 0))[:, None] & (c < CT)[None, :]
    place = image * (CT * WINDOWS) + c[None, :] * WINDOWS + window[:, None]
    where = tl.load(arg + place, inside, 255).to(tl.int32)
    value = tl.load(pooled + place, inside, 0.0).to(tl.float32)
    if KP == 1:
        return tl.where(where == 0, value, 0.0)
    pixel = tl.arange(0, KP * KP)[None, :, None]
    return tl.reshape(tl.where(where[:, None, :] == pixel, value[:, None, :], 0.0), [BP, BT])


@jit
@no_type_check
def _tap_grad_kernel(
    student,  # [N, CS, P], for its type and shape alone
    weight,  # [CT, CS]
    pooled,  # [N, CT, windows]: gradient of the pooled map, without `inter` and its factor
    arg,  # [N, CT, windows]
    grad,  # like student: gradient of the sum of distances
    out,  # like student
    intra,  # [taps] upstream of the distances
    inter,  # [] upstream of the relations
    images, index, factor, scale, steps,
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, LAST: tl.constexpr, CSP: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """Neighbouring blocks of a program share the sectors of their windows and the weights."""
    blocks, k = count(P, H, W, True, K, KP, BP), tl.arange(0, CSP)
    distances, relations = tl.load(intra + index) * factor, tl.load(inter) * scale
    for step in range(steps):
        place = tl.program_id(0) * steps + step
        image, block = (place // blocks).to(tl.int64), place % blocks
        first, lane, valid = locate(block, P, H, W, K, KP, BP)
        valid = valid & (first + lane < tl.where(image < images, P, 0))
        total = tl.zeros([BP, CSP], tl.float32)
        for start in range(0, CT, BT):
            c = start + tl.arange(0, BT)
            fits = (c < CT)[:, None] & (k < CS)[None, :]
            w = tl.load(weight + c[:, None] * CS + k[None, :], fits, 0.0)
            df = _pull(pooled, arg, image, block, c, images, CT, H, W, K, KP, BP, BT)
            kind = student.dtype.element_ty
            total = matmul(df.to(kind), w.to(kind), total, PREC)
        mask = valid[:, None] & (k < CS)[None, :]
        own = tl.load(tile(grad, image, first, lane, k, CS, P, LAST), mask, 0.0).to(tl.float32)
        value = narrow(own * distances + total * relations, out)
        tl.store(tile(out, image, first, lane, k, CS, P, LAST), value, mask)


@jit
@no_type_check
def _tap_weight_kernel(
    student, pooled, arg,
    sums,  # [CT * CS + CT + 1]: gradients of the sum of distances
    partial,  # [splits, CT * CS + CT] float32
    intra, inter, images, index, factor, scale, steps,
    CS: tl.constexpr, CT: tl.constexpr, P: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, LAST: tl.constexpr, CSP: tl.constexpr,
    BT: tl.constexpr, BP: tl.constexpr, PREC: tl.constexpr,
):  # fmt: skip
    """A chunk of the teacher's channels and a share of the pixels; the first adds the distances."""
    chunks, blocks = tl.cdiv(CT, BT), count(P, H, W, True, K, KP, BP)
    chunk, split = tl.program_id(0) % chunks, tl.program_id(0) // chunks
    c, k = chunk * BT + tl.arange(0, BT), tl.arange(0, CSP)
    dw = tl.zeros([BT, CSP], tl.float32)
    db = tl.zeros([BT], tl.float32)
    for step in range(steps):
        place = split * steps + step
        image, block = (place // blocks).to(tl.int64), place % blocks
        first, lane, valid = locate(block, P, H, W, K, KP, BP)
        valid = valid & (first + lane < tl.where(image < images, P, 0))
        at = tile(student, image, first, lane, k, CS, P, LAST)
        x = tl.load(at, valid[:, None] & (k < CS)[None, :], 0.0)
        df = _pull(pooled, arg, image, block, c, images, CT, H, W, K, KP, BP, BT)
        dw = product(tl.trans(df), x.to(tl.float32), dw, student, PREC)
        db += tl.sum(df, 0)
    outer = tl.load(inter) * scale
    own = tl.where(split == 0, tl.load(intra + index) * factor, 0.0)
    fits = (c < CT)[:, None] & (k < CS)[None, :]
    at = c[:, None] * CS + k[None, :]
    row = partial + split.to(tl.int64) * (CT * CS + CT)
    tl.store(row + at, dw * outer + tl.load(sums + at, fits, 0.0) * own, fits)
    bias = tl.load(sums + CT * CS + c, c < CT, 0.0) * own
    tl.store(row + CT * CS + c, db * outer + bias, c < CT)


def _fake(student: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    sums = student.new_empty(weight.numel() + weight.shape[0], dtype=torch.float32)
    return torch.empty_like(student), sums


@operator(_fake)
def tap_backward(
    student: Tensor, weight: Tensor, pooled: Tensor, arg: Tensor, grad: Tensor, sums: Tensor,
    intra: Tensor, inter: Tensor, window: int, index: int, factor: float, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the student's map, and of weight and bias [CT * CS + CT] in float32.

    Args:
        student: dense [N, CS, H, W]; weight: [CT, CS].
        pooled: gradient of the pooled adapted map [N, CT, h, w] up to `inter` and `scale`.
        arg: where each window has its maximum; 255: none.
        grad, sums: gradients of the sum of distances, from `adapter_forward`.
        intra: upstream of the distances [taps], of which `index` is ours, times `factor`.
        inter: upstream of the relations, times `scale`.
        window: side of a pooling window.
    """
    out = torch.empty_like(student)
    args = (student, weight, pooled, arg, grad, sums, intra, inter, window, index, factor, scale)
    return out, run_tap_backward(*args, out)


def run_tap_backward(
    student: Tensor, weight: Tensor, pooled: Tensor, arg: Tensor, grad: Tensor, sums: Tensor,
    intra: Tensor, inter: Tensor, window: int, index: int, factor: float, scale: float,
    out: Tensor,
) -> Tensor:  # fmt: skip
    """The same; the map's gradient goes to `out`. Returns those of weight and bias."""
    images, narrow_, height, width = student.shape
    constants: dict[str, Any] = {
        "CS": narrow_, "CT": weight.shape[0], "P": height * width, "H": height, "W": width,
        "K": window, "KP": power_of_two(window), "LAST": is_last(student),
        "CSP": power_of_two(narrow_, 16), "PREC": dot_precision(),
    }  # fmt: skip
    units = ceil_div(height, window) * ceil_div(width, window)
    scalars = (images, index, factor, scale)
    into = sums.new_empty(weight.numel() + weight.shape[0])
    # `out` may be `grad`, which a repeated run would scale again: never measured, never tuned
    config = fitted(configs(student.dtype)[0], constants)
    total = images * ceil_div(units, config["BP"] // constants["KP"] ** 2)
    steps = ceil_div(total, SPREAD)
    _tap_grad_kernel[(ceil_div(total, steps),)](
        student, weight, pooled, arg, grad, out, intra, inter, *scalars, steps, **constants,
        **config
    )  # fmt: skip

    def run(config: Config) -> None:
        config = fitted(config, constants)
        chunks = ceil_div(constants["CT"], config["BT"])
        total = images * ceil_div(units, config["BP"] // constants["KP"] ** 2)
        steps = ceil_div(total * chunks, SPREAD)
        splits = ceil_div(total, steps)
        partial = into.new_empty((splits, len(into)))
        _tap_weight_kernel[(chunks * splits,)](
            student, pooled, arg, sums, partial, intra, inter, *scalars, steps, **constants,
            **config
        )  # fmt: skip
        torch.sum(partial, 0, out=into)

    key = (student.dtype, *shape_class(images * height * width), *constants.values())
    found = configs(student.dtype)
    if window == 1:  # no window to share: larger products first
        found = (*found[1:], found[0])
    best("tap_weight", key, found, student.device, run)
    return into


def configs(dtype: torch.dtype) -> tuple[Config, ...]:
    """Configurations for maps of that type."""
    return WIDE_CONFIGS if dtype == torch.float32 else CONFIGS


def fitted(config: Config, constants: dict[str, Any]) -> dict[str, int]:
    """The configuration with tiles that hold a window, and no larger than the registers bear."""
    most = max(8192 // constants["CSP"], 16)
    pixels = max(min(config["BP"], most), constants["KP"] ** 2)
    return {**config, "BP": pixels, "BT": max(min(config["BT"], most), 16)}


def compilations(dtype: torch.dtype) -> list[Compilation]:
    """Every configuration at CSRNet's first, third and fifth tap, batch 8, 576x768."""
    types = dict.fromkeys(("student", "pooled", "grad", "out"), POINTER[dtype]) | {"arg": "*u8"}
    types |= dict.fromkeys(("weight", "sums", "partial", "intra", "inter"), "*fp32")
    types |= dict.fromkeys(("images", "index", "steps"), "i32")
    types |= dict.fromkeys(("factor", "scale"), "fp32")
    found = []
    for last in (False, True):
        for narrow_, wide, shrink in ((16, 64, 1), (32, 128, 4), (128, 512, 8)):
            height, width, side = 576 // shrink, 768 // shrink, 8 // shrink
            constants: dict[str, Any] = {
                "CS": narrow_, "CT": wide, "P": height * width, "H": height, "W": width,
                "K": side, "KP": side, "LAST": last, "CSP": narrow_, "PREC": "tf32x3",
            }  # fmt: skip
            for config in configs(dtype):
                held: dict[str, Any] = constants | fitted(config, constants)
                launch = {n: held.pop(n) for n in ("num_warps", "num_stages")}
                quick = config is configs(dtype)[0] and not last and shrink == 1
                label = f"{'NHWC' if last else 'NCHW'} {wide}"
                found += [
                    Compilation(kernel, types, held, launch, label, quick)
                    for kernel in (_tap_grad_kernel, _tap_weight_kernel)
                ]
    return found
