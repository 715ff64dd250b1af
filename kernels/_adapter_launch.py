"""Launches of the kernels of `_adapter`: one operator, and what to compile ahead."""

from typing import Any

import torch
from torch import Tensor

from kdcompile.kernels._adapter import EPS, chunked_kernel, weight_kernel, whole_kernel
from kdcompile.kernels._maps import ceil_div, is_last, power_of_two, walk
from kdcompile.kernels._ops import operator
from kdcompile.kernels._registry import POINTER, Compilation
from kdcompile.kernels._runtime import dot_precision
from kdcompile.kernels._tune import Config, best, shape_class

WHOLE = 64  # teacher channels up to which one tile holds them all
WIDEST = 1024  # student channels for which there is a kernel
LONGEST = 16384  # channels for which there is a kernel without an adapter
SPREAD = (
    528  # programs over which the adapter's gradients are summed: 4 a multiprocessor of an H100
)


def _tile(pixels: int, channels: int, window: int, most: int, least: int) -> int:
    """Pixels a block: a power of two, whole windows, about `most` values in the tile."""
    fitting = max(min(pixels, most // channels), least)
    return max(fitting, power_of_two(window) ** 2)


def is_whole(teacher_channels: int, adapt: bool, dtype: torch.dtype) -> bool:
    """Whether `whole_kernel` serves; the threefold products of float32 take too many registers."""
    return not adapt or (teacher_channels <= WHOLE and dtype != torch.float32)


def whole_configs(channels: int, adapt: bool, window: int) -> list[Config]:
    """Configurations of `whole_kernel` for that many (padded) teacher channels."""
    if adapt:
        shapes = [(64, 4, 1056), (64, 8, 1056), (128, 8, 528), (32, 4, 2112), (32, 8, 1056)]
    else:
        shapes = [(64, 8, 1056), (32, 4, 2112), (32, 8, 2112), (16, 4, 2112)]
    found = [
        {
            "BP": _tile(pixels, channels, window, 1024 * warps, 16 if adapt else 1),
            "PROGRAMS": programs,
            "num_warps": warps,
            "num_stages": 2,
        }
        for pixels, warps, programs in shapes
    ]
    return [c for i, c in enumerate(found) if c not in found[:i]]


def chunked_configs(channels_s: int, window: int, dtype: torch.dtype) -> list[Config]:
    """Configurations of `chunked_kernel` and `weight_kernel`."""
    shapes = [(64, 64, 8, 2), (32, 32 if channels_s > 64 else 64, 8, 3), (32, 32, 4, 2)]
    if dtype == torch.float32:
        shapes = [(16, 16 if channels_s > 64 else 32, 4, 2), (32, 16, 8, 2)]
    elif window > 1:  # the maxima of windows take registers too
        shapes = shapes[1:]
    return [
        {
            "BT": max(min(teacher, 16384 // channels_s), 16),
            "BP": _tile(pixels, channels_s, window, 8192, 16),
            "num_warps": warps,
            "num_stages": stages,
        }
        for teacher, pixels, warps, stages in shapes
    ]


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
    images, pixels = walk(student, teacher)
    height = width = 1
    if window:
        images, (height, width) = student.shape[0], student.shape[2:]
        pixels = height * width
    common = {
        "LAST_S": is_last(student), "LAST_T": is_last(teacher), "BIAS": bias is not None,
        "GRAD": gradient, "EMIT": window > 0, "K": max(window, 1),
        "KP": power_of_two(max(window, 1)), "PREC": dot_precision(), "EPS": EPS,
    }  # fmt: skip
    weights = (grad, grad) if weight is None else (weight, weight if bias is None else bias)
    tensors = (student, teacher, *weights, grad)
    key = (student.dtype, weight is not None, *shape_class(images * pixels), *common.values())
    key = (*key, student.shape[1], teacher.shape[1])
    common |= {"CS": student.shape[1], "CT": teacher.shape[1], "P": pixels}
    common |= {"H": height, "W": width}
    units = ceil_div(height, window) * ceil_div(width, window) if window else pixels
    wide = power_of_two(teacher.shape[1], 16 if weight is not None else 1)
    outputs = (tensors, pooled, images, units, factor, common, key)
    if is_whole(wide, weight is not None, student.dtype):
        _run_whole(sums, weight is not None, wide, *outputs)
    else:
        _run_chunked(sums, wide, *outputs)
    return sums, grad, pooled[0], pooled[1], pooled[2]


def _blocks(units: int, config: Config, common: dict[str, Any]) -> int:
    """Blocks an image, where a unit is a pixel or a window."""
    return ceil_div(units, config["BP"] // (common["KP"] ** 2 if common["EMIT"] else 1))


def _run_whole(
    sums: Tensor, adapt: bool, wide: int, tensors: Any, pooled: Any, images: int, units: int,
    factor: float, common: dict[str, Any], key: Any,
) -> None:  # fmt: skip
    student = tensors[0]
    narrow_ = power_of_two(student.shape[1], 16) if adapt else wide
    configs = whole_configs(max(wide, narrow_), adapt, common["K"])

    def run(config: Config) -> None:
        blocks = _blocks(units, config, common)
        total = images * blocks
        steps = ceil_div(total, config["PROGRAMS"])
        programs = ceil_div(total, steps)
        partial = student.new_empty((programs, sums.numel()), dtype=torch.float32)
        whole_kernel[(programs,)](
            *tensors, partial, *pooled, images, steps, factor, **common,
            ADAPT=adapt, CSP=narrow_, BT=wide, **_launch(config),
        )  # fmt: skip
        torch.sum(partial, 0, out=sums)

    best("adapter_whole", key, configs, student.device, run)


def _run_chunked(
    sums: Tensor, wide: int, tensors: Any, pooled: Any, images: int, units: int, factor: float,
    common: dict[str, Any], key: Any,
) -> None:  # fmt: skip
    student, grad = tensors[0], tensors[4]
    narrow_ = power_of_two(student.shape[1], 16)
    shape = (images, 3, common["P"] if common["GRAD"] else 0)
    stats = student.new_empty(shape, dtype=torch.float32)

    def run(config: Config) -> None:
        blocks = _blocks(units, config, common)
        partial = student.new_empty(images * blocks, dtype=torch.float32)
        chunked_kernel[(images * blocks,)](
            *tensors[:4], grad, stats, partial, *pooled, images, factor, **common, CSP=narrow_,
            CTP=wide, **_launch(config),
        )  # fmt: skip
        torch.sum(partial, 0, out=sums[-1])

    configs = chunked_configs(narrow_, common["K"], student.dtype)
    best("adapter_chunked", key, configs, student.device, run)
    if common["GRAD"]:
        _run_weight(sums, tensors, stats, images, narrow_, common, key)


def _run_weight(
    sums: Tensor, tensors: Any, stats: Tensor, images: int, narrow_: int,
    common: dict[str, Any], key: Any,
) -> None:  # fmt: skip
    student = tensors[0]
    constants = {n: common[n] for n in ("CS", "CT", "P", "LAST_S", "LAST_T", "BIAS", "PREC")}

    def run(config: Config) -> None:
        chunks, blocks = ceil_div(common["CT"], config["BT"]), ceil_div(common["P"], config["BP"])
        total = images * blocks
        steps = ceil_div(total * chunks, SPREAD)
        splits = ceil_div(total, steps)
        partial = student.new_empty((splits, sums.numel() - 1), dtype=torch.float32)
        weight_kernel[(chunks * splits,)](
            *tensors[:4], stats, partial, images, steps, **constants, CSP=narrow_,
            **_launch(config),
        )  # fmt: skip
        torch.sum(partial, 0, out=sums[:-1])

    configs = chunked_configs(narrow_, 1, student.dtype)
    best("adapter_weight", key, configs, student.device, run)


def _launch(config: Config) -> dict[str, int]:
    return {name: value for name, value in config.items() if name != "PROGRAMS"}


def compilations(dtype: torch.dtype) -> list[Compilation]:
    """Every configuration at CSRNet's first, third and fifth tap, batch 8, 576x768."""
    names = dict.fromkeys(("student", "teacher", "grad", "pooled_s", "pooled_t"), POINTER[dtype])
    names |= dict.fromkeys(("weight", "bias", "partial", "stats"), "*fp32") | {"arg": "*u8"}
    names |= {"pooled_s": "*fp32"}
    types = names | dict.fromkeys(("images", "steps"), "i32") | {"factor": "fp32"}
    taps = ((128, 512, True, 8), (16, 64, True, 1), (32, 128, True, 4), (512, 512, False, 8))
    found: list[Compilation] = []
    for label, last, window in (("NCHW", False, 0), ("NHWC", True, 0), ("pooled", False, 8)):
        for narrow_, wide, adapt, shrink in taps[: 3 if window else 4]:
            height, width, side = 576 // shrink, 768 // shrink, max(window // shrink, 1)
            common = {
                "BIAS": True, "GRAD": True, "PREC": "tf32x3", "EPS": EPS, "LAST_S": last,
                "LAST_T": last, "EMIT": window > 0, "K": side, "KP": side, "CS": narrow_,
                "CT": wide, "P": height * width * (8 if last else 1), "H": height, "W": width,
                "CSP": narrow_, "CTP": wide, "ADAPT": adapt, "BT": wide,
            }  # fmt: skip
            jobs, configs = [whole_kernel], whole_configs(wide, adapt, side)
            if not is_whole(wide, adapt, dtype):
                jobs = [chunked_kernel] if window else [chunked_kernel, weight_kernel]
                configs = chunked_configs(narrow_, side, dtype)
            for config in configs:
                name = f"{label} {wide}{'' if adapt else ' cosine'}"
                for kernel in jobs:
                    quick = all(c.kernel is not kernel for c in found)
                    found.append(_compilation(kernel, types, common | dict(config), name, quick))
    return found


def _compilation(
    kernel: Any, types: dict[str, str], values: dict[str, Any], label: str, quick: bool
) -> Compilation:
    """Of the values those that the kernel takes at compile time."""
    names = kernel.arg_names
    launch = {n: values[n] for n in ("num_warps", "num_stages")}
    return Compilation(
        kernel, types, {n: v for n, v in values.items() if n in names}, launch, label, quick
    )
