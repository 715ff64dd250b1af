"""Launches of the kernels of `gram_relation`: three operators, and what to compile ahead."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdcompile.kernels._gram import (
    ALIGN,
    D_ALIGN,
    D_SCALE,
    EPS,
    gram_bwd_kernel,
    gram_kernel,
    normalize_kernel,
)
from kdcompile.kernels._maps import ceil_div, power_of_two
from kdcompile.kernels._ops import operator
from kdcompile.kernels._pool import pool_kernel, unpool_kernel
from kdcompile.kernels._registry import POINTER, Compilation
from kdcompile.kernels._runtime import dot_precision
from kdcompile.kernels._tune import Config, best, shape_class

POOL: Sequence[Config] = (
    {"TILE": 1024, "num_warps": 4, "num_stages": 1},
    {"TILE": 2048, "num_warps": 8, "num_stages": 1},
    {"TILE": 512, "num_warps": 4, "num_stages": 1},
)
ROW = 8192  # pixels of a row that one program keeps in registers
GRAM: Sequence[Config] = (
    {"TILE": 128, "BLOCK": 64, "num_warps": 8, "num_stages": 3},
    {"TILE": 128, "BLOCK": 64, "num_warps": 8, "num_stages": 4},
    {"TILE": 64, "BLOCK": 64, "num_warps": 4, "num_stages": 4},
)
GRAM_WIDE: Sequence[Config] = (  # float32 maps
    {"TILE": 64, "BLOCK": 32, "num_warps": 8, "num_stages": 3},
    {"TILE": 32, "BLOCK": 32, "num_warps": 4, "num_stages": 4},
)
BACK: Sequence[Config] = (
    {"TILE": 128, "PIXELS": 128, "BLOCK": 64, "num_warps": 8, "num_stages": 3},
    {"TILE": 128, "PIXELS": 128, "BLOCK": 64, "num_warps": 8, "num_stages": 4},
    {"TILE": 64, "PIXELS": 256, "BLOCK": 64, "num_warps": 8, "num_stages": 3},
    {"TILE": 64, "PIXELS": 128, "BLOCK": 64, "num_warps": 4, "num_stages": 4},
)
BACK_ODD: Sequence[Config] = (  # where P is no multiple of 16: narrow stores need more registers
    {"TILE": 64, "PIXELS": 128, "BLOCK": 64, "num_warps": 8, "num_stages": 3},
    {"TILE": 128, "PIXELS": 64, "BLOCK": 64, "num_warps": 8, "num_stages": 3},
)
BACK_WIDE: Sequence[Config] = (
    {"TILE": 64, "PIXELS": 64, "BLOCK": 32, "num_warps": 4, "num_stages": 3},
    {"TILE": 64, "PIXELS": 64, "BLOCK": 32, "num_warps": 8, "num_stages": 3},
)


def smallest(features: Sequence[Tensor]) -> tuple[int, int]:
    """Height and width of the map with the fewest pixels: the common size."""
    areas = [f.shape[2] * f.shape[3] for f in features]
    height, width = features[areas.index(min(areas))].shape[2:]
    return height, width


def pool_factor(features: Tensor, size: tuple[int, int]) -> int:
    """The whole k with `size` = ceil(input / k); raises ValueError where there is none.

    On a small map several fit. The least power of two is the stride between the layers of a network
    that halves its maps, whatever the size of the image; else the least k.
    """
    height, width = features.shape[2:]
    least = max(ceil_div(height, size[0]), ceil_div(width, size[1]))
    for factor in (power_of_two(least), least):
        if (ceil_div(height, factor), ceil_div(width, factor)) == size:
            return factor
    raise ValueError(f"a map of {(height, width)} does not pool to {size}")


def _blocks(features: Tensor, config: Config, size: tuple[int, int]) -> tuple[int, dict[str, Any]]:
    """Programs and constants of `pool_kernel` and `unpool_kernel` for a dense map."""
    images, channels, height, width = features.shape
    factor, pixels, last = pool_factor(features, size), size[0] * size[1], _is_last(features)
    columns = 1 if last else power_of_two(factor)
    if last:
        ch = min(power_of_two(channels), 64 if config["TILE"] > 1024 else 32)
        win = max(config["TILE"] // ch, 1)
    else:
        win = min(max(config["TILE"] // columns, 1), power_of_two(pixels))
        ch = min(max(config["TILE"] // columns // win, 1), power_of_two(channels))
    steps = factor * factor if last else factor
    # no more than 16 elements a thread at once where addresses may each need a register
    together = min(512 * config["num_warps"] // config["TILE"], 8) if last else 8
    constants = {
        "K": factor, "J": columns, "LAST": last, "CH": ch, "WIN": win,
        "UNROLL": max(u for u in range(1, together + 1) if steps % u == 0),
        "RAGGED": columns not in (1, factor) or height % factor > 0 or width % factor > 0,
        "num_warps": config["num_warps"], "num_stages": config["num_stages"],
    }  # fmt: skip
    return images * ceil_div(channels, ch) * ceil_div(pixels, win), constants


def _is_last(features: Tensor) -> bool:
    """Whether a dense map must be walked as channels_last; what is both counts as contiguous."""
    return not features.is_contiguous()


def _pool(features: Tensor, size: tuple[int, int], arg: Tensor | None) -> Tensor:
    """The map pooled to [N, C, P], contiguous; the map itself where it is that already."""
    factor = pool_factor(features, size)
    if factor == 1 and not _is_last(features):
        return features
    images, channels, height, width = features.shape
    pixels = size[0] * size[1]
    pooled = features.new_empty((images, channels, pixels))
    keep = arg is not None and factor > 1

    def run(config: Config) -> Tensor:
        programs, constants = _blocks(features, config, size)
        pool_kernel[(programs,)](
            features, pooled, arg if keep else pooled, channels, height, width, size[1], pixels,
            ARG=keep, **constants
        )  # fmt: skip
        return pooled

    key = (features.dtype, factor, _is_last(features), keep, *shape_class(images, channels, pixels))
    return best("gram_pool", key, POOL, features.device, run)


def _rows(pixels: int) -> dict[str, Any]:
    """Constants of `normalize_kernel`: a row in registers, or in blocks of half that size."""
    stride = ceil_div(pixels, ALIGN) * ALIGN
    whole = stride <= ROW
    block = power_of_two(stride) if whole else ROW // 2
    rows = max(1024 // block, 1)
    warps = max(4, rows * block // (512 if whole else 256))
    return {"EPS": EPS, "WHOLE": whole, "ROWS": rows, "BLOCK": block, "num_warps": warps}


def _normal(
    maps: Sequence[Tensor], arg: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Z of one net's maps; with `arg`, which takes arg-maxima by layer, statistics and layers."""
    images, size = maps[0].shape[0], smallest(maps)
    channels, pixels = sum(m.shape[1] for m in maps), size[0] * size[1]
    stride = ceil_div(pixels, ALIGN) * ALIGN
    z = maps[0].new_empty((images, channels, stride), dtype=dtype)
    stats = maps[0].new_empty((3, images, channels), dtype=torch.float32)
    layer = maps[0].new_empty((2, channels), dtype=torch.int32)
    constants = _rows(pixels)
    begin = taken = 0
    for features in maps:
        own = features.shape[1]
        pooled = _pool(features, size, None if arg is None else arg[taken:])
        taken += images * own * pixels if pool_factor(features, size) > 1 else 0
        normalize_kernel[(ceil_div(images * own, constants["ROWS"]),)](
            pooled, z, stats, layer, images * own, own, begin, channels, pixels, stride,
            images * channels, STATS=arg is not None, **constants
        )  # fmt: skip
        begin += own
    return z, stats, layer


def _z_type(maps: Sequence[Tensor]) -> torch.dtype:
    same = all(m.dtype == torch.float32 for m in maps)
    return torch.float32 if same else torch.float16


def _arg_like(maps: Sequence[Tensor]) -> Tensor:
    """Room for the arg-maxima of all pooled maps, in the narrowest type that holds them."""
    size = smallest(maps)
    factors = [pool_factor(m, size) for m in maps]
    room = sum(
        m.shape[0] * m.shape[1] * size[0] * size[1]
        for m, k in zip(maps, factors, strict=True)
        if k > 1
    )
    kinds = ((256, torch.uint8), (2**15, torch.int16), (2**31, torch.int32))
    dtype = next(kind for most, kind in kinds if max(factors) ** 2 <= most)
    return maps[0].new_empty((room,), dtype=dtype)


def _forward_fake(
    students: Sequence[Tensor], teachers: Sequence[Tensor], factor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    first, size = students[0], smallest(students)
    images, channels = first.shape[0], sum(m.shape[1] for m in students)
    stride = ceil_div(size[0] * size[1], ALIGN) * ALIGN
    wide = ceil_div(channels, D_ALIGN) * D_ALIGN
    kind = _z_type([*students, *teachers])
    return (
        first.new_empty((), dtype=torch.float32),
        first.new_empty((images, channels, stride), dtype=kind),
        first.new_empty((images, channels, wide), dtype=kind),
        first.new_empty((2, images, channels), dtype=torch.float32),
        first.new_empty((3, images, channels), dtype=torch.float32),
        first.new_empty((2, channels), dtype=torch.int32),
        _arg_like(students),
    )


@operator(_forward_fake)
def gram_relation_forward(
    students: Sequence[Tensor], teachers: Sequence[Tensor], factor: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss; and of the student Z, D, r, statistics, the layers of the channels, arg-maxima."""
    size, arg = smallest(students), _arg_like(students)
    kind = _z_type([*students, *teachers])
    theirs, _, _ = _normal(teachers, None, kind)
    z, stats, layer = _normal(students, arg, kind)
    images, channels, stride = z.shape
    wide = ceil_div(channels, D_ALIGN) * D_ALIGN
    difference = z.new_empty((images, channels, wide))
    constants = {"SCALE": D_SCALE, "PRECISION": dot_precision()}

    def run(config: Config) -> tuple[Tensor, Tensor]:
        tiles = ceil_div(channels, config["TILE"])
        partial = stats.new_empty(images * tiles * tiles)
        cross = stats.new_empty((tiles, 2, images, channels))
        gram_kernel[(len(partial),)](
            z, theirs, layer, stats, difference, cross, partial, channels, size[0] * size[1],
            stride, wide, images * channels, factor, **constants, **config
        )  # fmt: skip
        return partial.sum(), cross.sum(0)

    configs = GRAM_WIDE if z.dtype == torch.float32 else GRAM
    key = (z.dtype, dot_precision(), *shape_class(images, channels, stride))
    loss, cross = best("gram_forward", key, configs, z.device, run)
    return loss, z, difference, cross, stats, layer, arg


def _backward_fake(
    z: Tensor, difference: Tensor, cross: Tensor, stats: Tensor, layer: Tensor,
    upstream: Tensor | None, factor: float, pixels: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return z.new_empty((z.shape[0] * z.shape[1] * pixels,), dtype=dtype)


@operator(_backward_fake)
def gram_relation_backward(
    z: Tensor, difference: Tensor, cross: Tensor, stats: Tensor, layer: Tensor,
    upstream: Tensor | None, factor: float, pixels: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The gradients of the pooled maps behind each other, each [N, C_i, P].

    `upstream` None stands for 1.
    """
    images, channels, stride = z.shape
    grad = z.new_empty((images * channels * pixels,), dtype=dtype)
    constants = {"SCALE": D_SCALE, "PRECISION": dot_precision(), "SCALED": upstream is not None}
    outer = stats if upstream is None else upstream

    def run(config: Config) -> Tensor:
        tiles, blocks = ceil_div(channels, config["TILE"]), ceil_div(pixels, config["PIXELS"])
        gram_bwd_kernel[(images * tiles * blocks,)](
            z, difference, layer, stats, cross, outer, grad, images, channels, pixels, stride,
            difference.shape[2], 2 * factor / pixels, **constants, **config
        )  # fmt: skip
        return grad

    odd = pixels % 16 > 0
    configs = BACK_WIDE if z.dtype == torch.float32 else BACK_ODD if odd else BACK
    key = (z.dtype, dtype, odd, dot_precision(), *shape_class(images, channels, stride))
    return best("gram_backward", key, configs, z.device, run)


def _unpool_fake(
    pooled: Tensor, arg: Tensor, shape: Sequence[int], stride: Sequence[int],
    height: int, width: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    return torch.empty_strided(shape, stride, dtype=dtype, device=pooled.device)


@operator(_unpool_fake)
def gram_unpool(
    pooled: Tensor, arg: Tensor, shape: Sequence[int], stride: Sequence[int],
    height: int, width: int, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """The gradient of a map of that shape, stride and type, from that of [N, C, P]."""
    grad = torch.empty_strided(shape, stride, dtype=dtype, device=pooled.device)
    keep = pool_factor(grad, (height, width)) > 1

    def run(config: Config) -> Tensor:
        programs, constants = _blocks(grad, config, (height, width))
        unpool_kernel[(programs,)](
            pooled, arg if keep else pooled, grad, *shape[1:], width, height * width,
            ARG=keep, **constants
        )  # fmt: skip
        return grad

    key = (dtype, keep, _is_last(grad), *shape_class(*shape))
    return best("gram_unpool", key, POOL, grad.device, run)


def compilations(dtype: torch.dtype) -> list[Compilation]:
    """Every configuration; the products have no part in bfloat16, only what writes a gradient."""
    pointer, number = POINTER[dtype], "*fp32"
    wide, z = dtype == torch.float32, "*fp32" if dtype == torch.float32 else "*fp16"
    found = _pool_compilations(dtype)
    types = {"x": pointer, "z": z, "stats": number, "layer": "*i32"} | dict.fromkeys(
        ("rows", "OWN", "begin", "C", "P", "size"), "i32"
    )
    for size in (6912, 2 * ROW, 64):
        values = _rows(size) | {"Q": size, "STATS": True, "num_stages": 3}
        found.append(_compilation(normalize_kernel, types, values, str(size), size == 6912))
    plain = {"layer": "*i32", "stats": number, "difference": z, "cross": number}
    plain |= {"N": "i32", "C": "i32"}
    sizes: dict[str, Any] = {"Q": 6912, "W": 1296, "SCALE": D_SCALE, "PRECISION": "tf32x3"}
    forward = {"student": z, "teacher": z, "partial": number, "factor": "fp32"}
    forward |= plain | {"size": "i32"}
    backward = {"z": z, "upstream": number, "grad": pointer, "factor": "fp32"}
    odd, known = {"P": "i32"}, sizes | {"SCALED": True}
    sides: list[tuple[Any, dict[str, str], dict[str, Any], Sequence[Config]]] = [
        (gram_bwd_kernel, backward | plain | odd, known, BACK_WIDE if wide else BACK_ODD)
    ]
    if not wide:
        sides.insert(0, (gram_bwd_kernel, backward | plain, known | {"P": 6912}, BACK))
    if dtype != torch.bfloat16:
        sides.append((gram_kernel, forward | odd, sizes, GRAM_WIDE if wide else GRAM))
    for kernel, types, known, configs in sides:
        for config in configs:
            label = " ".join(map(str, config.values()))
            quick = config is configs[0] and configs is not BACK_ODD and dtype != torch.bfloat16
            found.append(_compilation(kernel, types, {**known, **config}, label, quick))
    return found


def _pool_compilations(dtype: torch.dtype) -> list[Compilation]:
    pointer, found = POINTER[dtype], []
    types = {"x": pointer, "pooled": pointer, "grad": pointer, "arg": "*u8"} | dict.fromkeys(
        ("C", "H", "W", "OW", "P"), "i32"
    )
    for config in POOL:
        for factor, last in ((8, False), (4, False), (2, False), (3, False), (8, True), (1, True)):
            shape = (1, 64, 72 * factor, 96 * factor)
            example = torch.empty(shape, device="meta", dtype=dtype)
            if last:
                example = example.contiguous(memory_format=torch.channels_last)
            _, constants = _blocks(example, config, (72, 96))
            label = f"{'channels_last ' if last else ''}{factor} {config['TILE']}"
            quick = config is POOL[0] and (factor, last) == (8, False)
            found += [
                _compilation(kernel, types, constants | {"ARG": factor > 1}, label, quick)
                for kernel in (pool_kernel, unpool_kernel)
            ]
    return found


def _compilation(
    kernel: Any, types: dict[str, str], values: dict[str, Any], label: str, quick: bool
) -> Compilation:
    launch = {n: values[n] for n in ("num_warps", "num_stages")}
    constants = {n: v for n, v in values.items() if n not in launch}
    return Compilation(kernel, types, constants, launch, label, quick)
