"""Launches of the kernels of `_adapter` for one or more taps, and what to compile ahead."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdcompile.kernels._adapter import EPS, weight_kernel, whole_kernel, wide_kernel
from kdcompile.kernels._adapter_fold import ALIGN, fold, fold_compilations
from kdcompile.kernels._maps import ceil_div, is_last, power_of_two
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Compilation
from kdcompile.kernels._runtime import dot_precision
from kdcompile.kernels._tune import Config, best, shape_class

WHOLE = 64  # teacher channels up to which one tile holds them all
FUSED = 32  # student channels up to which one program holds the registers of both steps of a tap
WIDEST = 1024  # student channels for which there is a kernel
LONGEST = 16384  # channels for which there is a kernel without an adapter
SPREAD = 528  # programs that sum the adapter's gradients apart: 4 a multiprocessor of an H100


def is_whole(channels: int, adapt: bool, window: int, dtype: torch.dtype) -> bool:
    """Whether `whole_kernel` serves; maxima of windows take registers as float32's products do."""
    return not adapt or (channels <= WHOLE and not (window and dtype == torch.float32))


def _config(channels: int, window: int, shape: Sequence[int], most: int, least: int) -> Config:
    """BP is a power of two of whole windows, about `most` values in the tile of that shape."""
    pixels, block, warps, programs = shape
    fitting = max(min(pixels, most // channels), least)
    return {
        "BP": max(fitting, power_of_two(window) ** 2), "BT": block, "PROGRAMS": programs,
        "num_warps": warps, "num_stages": 2,
    }  # fmt: skip


def _distinct(found: Sequence[Config]) -> list[Config]:
    return [c for i, c in enumerate(found) if c not in found[:i]]


def whole_configs(channels: int, adapt: bool, window: int, dtype: torch.dtype) -> list[Config]:
    """Configurations of `whole_kernel` for that many (padded) channels; BT holds them all."""
    shapes = [(64, 8, 1056), (32, 4, 2112), (32, 8, 2112), (16, 4, 2112)]
    if adapt:
        shapes = [(64, 4, 396), (128, 8, 264), (32, 4, 528)]
    if adapt and dtype == torch.float32:  # threefold products take more registers
        shapes = [(32, 4, 264), (16, 4, 264)]
    return _distinct(
        [
            _config(channels, window, (p, channels, w, n), 1024 * w, 16 if adapt else 1)
            for p, w, n in shapes
        ]
    )


def wide_configs(channels_s: int, window: int, dtype: torch.dtype) -> list[Config]:
    """Configurations of `wide_kernel`."""
    shapes = [(64, 32, 4, 264), (64, 16, 4, 264), (32, 32, 4, 528)]
    if dtype == torch.float32:
        pixels = 16 if channels_s > 64 else 32 if channels_s > 32 else 64
        shapes = [(pixels, 16, 4, 528), (16, 16, 4, 528)]
        shapes = [(16, 16 if channels_s > 64 else 32, 4, 528)] if window else shapes
    elif channels_s > 64:
        shapes = [(64, 32, 8, 132), (32, 32, 8, 264)]
        shapes = shapes if window else [(128, 16, 8, 132), shapes[0]]
    elif window > 1:  # the maxima of windows take registers too
        shapes = [(32, 32, 4, 528), (32, 16, 4, 528)]
    most = 16384 if dtype != torch.float32 else 8192
    return _distinct(
        [
            _config(channels_s, window, (p, max(min(b, most // channels_s), 16), w, n), most, 16)
            for p, b, w, n in shapes
        ]
    )


def weight_configs(channels_s: int, dtype: torch.dtype) -> list[Config]:
    """Configurations of `weight_kernel`, and the BT of a fused `wide_kernel` in the first."""
    shapes = [(32, 64, 4 if channels_s <= 64 else 8, SPREAD), (32, 32, 4, SPREAD)]
    if dtype == torch.float32:
        pixels, block = 32 if channels_s <= 32 else 16, 32 if channels_s <= 64 else 16
        shapes = [(pixels, block, 4, SPREAD), (16, 16, 4, SPREAD)]
    return _distinct(
        [
            _config(channels_s, 1, (p, max(min(b, 16384 // channels_s), 16), w, n), 8192, 16)
            for p, b, w, n in shapes
        ]
    )


class Tap(NamedTuple):
    """What the launches of a tap have in common at one shape; sizes are in elements."""

    images: int
    constants: dict[str, Any]
    key: tuple[Any, ...]
    configs: list[Config]
    apart: list[Config]  # of `weight_kernel`; none where one kernel does it all
    whole: bool
    parameters: int  # gradients of weight and bias
    room: int  # for the sums of any configuration; behind them lie the stats of the pixels
    stats: int
    ready: list[tuple[int, dict[str, Any]]]  # programs and constants of each configuration
    ready_apart: list[tuple[int, dict[str, Any]]]


@lru_cache(maxsize=1024)
def planned(
    shape: torch.Size, wide: int, dtype: torch.dtype, last: tuple[bool, bool], adapt: bool,
    bias: bool, gradient: bool, window: int, precision: str,
) -> Tap:  # fmt: skip
    """The tap of a student's map of that shape and `wide` teacher channels.

    Args:
        last: whether the channels of student and teacher lie innermost.
    """
    images, narrow_, height, width = shape
    pixels = height * width
    if not window:
        images, pixels = (1, images * pixels) if all(last) else (images, pixels)
        height = width = 1
    padded = power_of_two(wide, 16 if adapt else 1)
    constants: dict[str, Any] = {
        "CS": narrow_, "CT": wide, "P": pixels, "H": height, "W": width, "LAST_S": last[0],
        "LAST_T": last[1], "BIAS": bias, "GRAD": gradient, "EMIT": window > 0,
        "K": max(window, 1), "KP": power_of_two(max(window, 1)), "PREC": precision, "EPS": EPS,
        "CSP": power_of_two(narrow_, 16) if adapt else padded,
    }  # fmt: skip
    whole, side = is_whole(max(padded, constants["CSP"]), adapt, window, dtype), constants["K"]
    apart: list[Config] = []
    if whole:
        configs = whole_configs(max(padded, constants["CSP"]), adapt, side, dtype)
        configs = [{**c, "BT": padded} for c in configs]
        constants |= {"ADAPT": adapt, "EYE": adapt and dtype.itemsize == 2}
    else:
        configs = wide_configs(constants["CSP"], window, dtype)
        fused = constants["CSP"] <= FUSED and gradient and dtype.itemsize == 2
        apart = weight_configs(constants["CSP"], dtype) if gradient and not fused else []
        constants |= {"CTP": padded, "FUSED": fused, "BW": min(64, padded)}
    parameters = (wide * narrow_ + wide) if adapt and gradient else 0
    units = ceil_div(height, window) * ceil_div(width, window) if window else pixels
    key = (" ".join(map(str, (dtype, *shape_class(images * pixels), *constants.values()))),)
    rows = max(c["PROGRAMS"] for c in configs)
    room = rows * (1 if apart else parameters + 1) + (SPREAD * parameters if apart else 0)
    room = ceil_div(room + 16, 16) * 16
    stats = 0 if whole or not gradient else ceil_div(3 * images * pixels, 16) * 16
    names = ("CS", "CT", "P", "LAST_S", "LAST_T", "BIAS", "PREC", "CSP")
    plain = {n: constants[n] for n in names} if apart else {}
    ready = [_ready(c, images, units, constants) for c in configs]
    found = [_ready(c, images, pixels, plain) for c in apart]
    return Tap(
        images, constants, key, configs, apart, whole, parameters, room, stats, ready, found
    )  # fmt: skip


def _ready(
    config: Config, images: int, units: int, constants: dict[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Programs and all constants of a launch.

    There are no more programs than blocks of pixels; EVEN says whether every pixel and channel of
    every tile exists.
    """
    c, side, block = constants, constants.get("K", 1), config["BP"]
    even = c["CS"] == c["CSP"] and not any(c["CT"] % n for n in (config["BT"], c.get("BW", 1)))
    if c.get("EMIT"):
        even &= c["KP"] == side and not (c["H"] % side or c["W"] % side)
        block //= c["KP"] ** 2
    launch = {n: value for n, value in config.items() if n != "PROGRAMS"}
    programs = min(config["PROGRAMS"], images * ceil_div(units, block))
    return programs, {**constants, **launch, "EVEN": even and units % block == 0}


def run_tap(
    tensors: Sequence[Tensor], tap: Tap, pooled: Sequence[Tensor], partial: Tensor, grad_at: int,
    partial_at: int,
) -> tuple[tuple[int, ...], tuple[int, ...]]:  # fmt: skip
    """Launch one tap; returns (first, rows, stride) of its partial losses and parameters.

    Args:
        tensors: student, teacher, weight, bias and gradient (any tensor for what there is not).
        partial: for the sums of all taps, of this one from `partial_at` on.
        grad_at: where the tap's gradient begins.
    """
    device, kernel = partial.device, whole_kernel if tap.whole else wide_kernel
    stats_at = partial_at + tap.room
    extra = () if tap.whole else (stats_at,)

    def run(config: Config) -> int:
        programs, constants = tap.ready[tap.configs.index(config)]
        kernel[(programs,)](
            *tensors, partial, *pooled, tap.images, grad_at, partial_at, *extra, **constants
        )
        return programs

    name = "adapter_whole" if tap.whole else "adapter_wide"
    rows = best(name, tap.key, tap.configs, device, run)
    if not tap.apart:
        width = tap.parameters + 1
        return (partial_at + tap.parameters, rows, width), (partial_at, rows, width)

    weights_at = partial_at + ceil_div(rows, 16) * 16

    def run_weight(config: Config) -> int:
        most, constants = tap.ready_apart[tap.apart.index(config)]
        chunks = ceil_div(constants["CT"], config["BT"])
        splits = max(most // chunks, 1)
        weight_kernel[(chunks * splits,)](
            *tensors[:4], partial, tap.images, splits, weights_at, stats_at, **constants
        )
        return splits

    splits = best("adapter_weight", tap.key, tap.apart, device, run_weight)
    return (partial_at, rows, 1), (weights_at, splits, tap.parameters)


Taps = Sequence[Tensor]
Plain = Sequence[Tensor | None]


def _plans(
    students: Taps, teachers: Taps, weights: Plain, biases: Plain, gradient: bool,
    windows: Sequence[int],
) -> list[Tap]:  # fmt: skip
    precision = dot_precision()
    return [
        planned(
            s.shape, t.shape[1], s.dtype, (is_last(s), is_last(t)), w is not None, b is not None,
            gradient, window, precision,
        )
        for s, t, w, b, window in zip(students, teachers, weights, biases, windows, strict=True)
    ]  # fmt: skip


def begins(sizes: Sequence[int]) -> list[int]:
    """Where taps of so many elements begin in one buffer; at the end, how long that is."""
    found = [0]
    for size in sizes:
        found.append(found[-1] + ceil_div(size, ALIGN) * ALIGN)
    return found


def _taps_fake(
    students: Taps, teachers: Taps, weights: Plain, biases: Plain, factors: Sequence[float],
    gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    first = students[0]
    sizes = [w.numel() + w.shape[0] for w in weights if w is not None]
    room = begins([s.numel() for s in students])[-1] if gradient else 0
    return (
        first.new_empty((), dtype=torch.float32),
        first.new_empty(sum(sizes) if gradient else 0, dtype=torch.float32),
        first.new_empty(room),
    )


@operator(_taps_fake)
def adapter_taps_forward(
    students: Sequence[Tensor], teachers: Sequence[Tensor], weights: Sequence[Tensor | None],
    biases: Sequence[Tensor | None], factors: Sequence[float], gradient: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The loss of all taps; gradients of all parameters, and of all students without `factors`.

    Args:
        students, teachers: dense maps [N, CS, H, W] and [N, CT, H, W] of each tap.
        weights, biases: the adapters [CT, CS] and [CT], or None.
        factors: what the sum of a tap's distances is multiplied with.
        gradient: whether gradients are wanted; without, theirs are empty.

    Returns: the loss, float32; weight and bias of each tap behind each other, float32; the
    students' gradients in their type and memory format, each from its place in `begins` on.
    """
    loss, sums, grad = _taps_fake(students, teachers, weights, biases, factors, gradient)
    plans = _plans(students, teachers, weights, biases, gradient, (0,) * len(students))
    places = begins([s.numel() for s in students])
    outputs = (loss, sums, [grad] * len(plans), places if gradient else [0] * len(plans))
    none = [(grad,) * 3] * len(plans)
    _run((students, teachers, weights, biases), plans, factors, factors, outputs, none)
    return loss, sums, grad


def _run(
    inputs: Any, plans: Sequence[Tap], factors: Sequence[float], scales: Sequence[float],
    outputs: Any, pooled: Sequence[Any],
) -> None:  # fmt: skip
    """Launch every tap, then the sums: losses times `factors`, parameters times `scales`."""
    loss, sums, grads, places = outputs
    partial = loss.new_empty(sum(p.room + p.stats for p in plans))
    losses, parameters, at = [], [], 0
    for i, (student, teacher, weight, bias) in enumerate(zip(*inputs, strict=True)):
        own = grads[i] if weight is None else weight
        tensors = (student, teacher, own, own if bias is None else bias, grads[i])
        distances, rest = run_tap(tensors, plans[i], pooled[i], partial, places[i], at)
        losses.append((*distances, factors[i]))
        if plans[i].parameters:
            parameters.append((*rest, plans[i].parameters, scales[i]))
        at += plans[i].room + plans[i].stats
    fold(partial, sums, loss, tuple(losses), tuple(parameters))


def _adapter_fake(
    student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None, factor: float,
    gradient: bool, window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (batch, wide), narrow_ = teacher.shape[:2], student.shape[1]
    size = 1 + (wide * narrow_ + wide) * (weight is not None and gradient)
    sums = student.new_empty(size, dtype=torch.float32)
    grad = torch.empty_like(student) if gradient else student.new_empty(0)
    if not window:
        return sums, grad, student.new_empty(0), student.new_empty(0), student.new_empty(0)
    shape = (batch, wide, *(ceil_div(side, window) for side in student.shape[2:]))
    pooled = student.new_empty(shape, dtype=torch.float32), student.new_empty(shape)
    return sums, grad, *pooled, student.new_empty(shape, dtype=torch.uint8)


@operator(_adapter_fake)
def adapter_forward(
    student: Tensor, teacher: Tensor, weight: Tensor | None, bias: Tensor | None, factor: float,
    gradient: bool, window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """One tap: sums, the student's gradient, and the pooled maps with the arg-max.

    Args:
        student, teacher: dense maps [N, CS, H, W] and [N, CT, H, W].
        weight, bias: the adapter [CT, CS] and [CT], or None.
        factor: what the sum of the distances is multiplied with.
        gradient: whether gradients are wanted; without, theirs are empty.
        window: side of the pooling window, 0 for no pooled maps.

    Returns: `sums` float32 [CT * CS + CT + 1]: gradients of weight and bias, and the loss (only
    the loss without adapter or gradient); the gradient like the student; pooled adapted and pooled
    teacher maps [N, CT, h, w], float32 and in the maps' type; the arg-max uint8 [N, CT, h, w], 255
    where the adapted maximum is 0. Gradients are those of the sum of distances, without `factor`.
    """
    sums, grad, *pooled = _adapter_fake(student, teacher, weight, bias, factor, gradient, window)
    inputs = ([student], [teacher], [weight], [bias])
    plans = _plans(*inputs, gradient, [window])
    _run(inputs, plans, [factor], [1.0], (sums[-1], sums, [grad], [0]), [pooled])
    return sums, grad, pooled[0], pooled[1], pooled[2]


def compilations(dtype: torch.dtype) -> list[Compilation]:
    """Every configuration at CSRNet's first, third to fifth tap, batch 8, 576x768."""
    names = dict.fromkeys(("student", "teacher", "grad", "pooled_s", "pooled_t"), POINTER[dtype])
    names |= dict.fromkeys(("weight", "bias", "partial"), "*fp32") | {"arg": "*u8"}
    names |= {"pooled_s": "*fp32"}
    types = names | dict.fromkeys(("images", "splits", "grad_at", "partial_at", "stats_at"), "i32")
    taps = ((128, 512, True, 8), (16, 64, True, 1), (32, 128, True, 4), (512, 512, False, 8))
    found: list[Compilation] = []
    for label, last, window in (("NCHW", False, 0), ("NHWC", True, 0), ("pooled", False, 8)):
        for narrow_, wide, adapt, shrink in taps[: 3 if window else 4]:
            shape = torch.Size((8, narrow_, 576 // shrink, 768 // shrink))
            side = max(window // shrink, 1) if window else 0
            tap = planned(shape, wide, dtype, (last, last), adapt, adapt, True, side, "tf32x3")
            jobs = [(whole_kernel if tap.whole else wide_kernel, c) for c in tap.configs]
            jobs += [(weight_kernel, c) for c in tap.apart if not window]
            for kernel, config in jobs:
                name = f"{label} {wide}{'' if adapt else ' cosine'}"
                quick = all(c.kernel is not kernel for c in found)
                values = {**tap.constants, **config, "EVEN": True}
                found.append(_compilation(kernel, types, values, name, quick))
    return [*found, *fold_compilations(dtype)]


def _compilation(
    kernel: Any, types: dict[str, str], values: dict[str, Any], label: str, quick: bool
) -> Compilation:
    """Of the values those that the kernel takes at compile time."""
    names = kernel.arg_names
    launch = {n: values[n] for n in ("num_warps", "num_stages")}
    return Compilation(
        kernel, types, {n: v for n, v in values.items() if n in names}, launch, label, quick
    )
