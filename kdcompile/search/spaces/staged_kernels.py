"""Kernels of a staged student, computed from its architecture without making the network.

Equal, but for the names of kernels and tensors, to `kernels_of` of the exported student; a test
compares the two over every kind of block. What differs from student to student is remembered stage
by stage, so that a search prices a student by looking its stages up: equal stages at equal places
are the same `Kernel` objects.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from kdcompile.latency_model.graph import BYTES
from kdcompile.latency_model.workload import Kernel, Kind, Precision
from kdcompile.models.blocks import POINT, Window, inner_width, window
from kdcompile.models.staged import SCALES, STAGE_KEYS, cells

IMAGE, OUTPUT = "image", "output"
REMEMBERED = 1 << 17  # stages; a kernel takes about a kilobyte


@dataclass(frozen=True)
class _Tensor:
    """Between two kernels."""

    name: str
    shape: tuple[int, ...]
    precision: str

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.precision]


def staged_kernels(
    architecture: Mapping[str, Any], shape: Sequence[int], float32_as: Precision = "fp32"
) -> list[Kernel]:
    """The kernels of one inference, in the order in which they run.

    Args:
        architecture: of family `staged`, as `kdcompile.models.staged` describes it.
        shape: input [N, C, H, W].
        float32_as: as in `kernels_of`.

    Raises:
        KDError: `architecture-stride`.
    """
    batch, channels, height, width = shape
    parts, of = SCALES[architecture["input_scale"]]
    kernels = list(_start((batch, channels, height, width), parts, of, float32_as))
    size = (batch, _part(height, parts, of), _part(width, parts, of))
    source = next(iter(kernels[-1].writes)) if kernels else IMAGE
    for number, settings in enumerate(architecture["stages"]):
        name = f"stages.{number}"
        kernels += _stage(*_key(settings), channels, size, float32_as, name, source)
        channels, source = settings["width"], name
        stride = settings["stride"]
        size = (batch, _part(size[1], 1, stride), _part(size[2], 1, stride))
    last = (source, (batch, channels, *size[1:]), architecture["out_channels"], float32_as)
    if architecture["head"] == "pooled":
        return [*kernels, *_pooled(*last)]
    requested = architecture["output_stride"]
    resized = cells(architecture) < 1
    full = (_part(height, 1, requested), _part(width, 1, requested)) if resized else None
    return [*kernels, *_dense(*last, full)]


def _key(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(settings[name] for name in STAGE_KEYS)


def _part(side: int, parts: int, of: int) -> int:
    return -(-side * parts // of)


@lru_cache(maxsize=REMEMBERED)
def _stage(
    block: str,
    width: int,
    depth: int,
    stride: int,
    down: str,
    dilation: int,
    in_width: int,
    in_shape: tuple[int, int, int],
    precision: str,
    name: str,
    source: str,
) -> tuple[Kernel, ...]:
    x = _Tensor(source, (in_shape[0], in_width, *in_shape[1:]), precision)
    kernels: list[Kernel] = []
    if down == "pool" and stride > 1:
        pooled = _Tensor(f"{name}.pool", _strided(x, in_width, stride), precision)
        sides: dict[str, Any] = {
            "kernel_size": (stride, stride), "stride": (stride, stride), "dilation": (1, 1),
        }  # fmt: skip
        kernels.append(_kernel("pool", [x], pooled, **sides))
        x, stride = pooled, 1
    for number in range(depth):
        result = name if number == depth - 1 else f"{name}.{number}"
        made = _block(block, x, width, window(1 if number else stride, dilation), result)
        kernels += made
        x = _Tensor(result, made[-1].shape, precision)
    return tuple(kernels)


def _block(block: str, x: _Tensor, width: int, around: Window, result: str) -> list[Kernel]:
    """One block, from `x` to the tensor `result`."""
    if block == "separable":
        depthwise = _conv(x, f"{result}.depthwise", x.shape[1], around, groups=x.shape[1])
        return [depthwise, _conv(_output_of(depthwise), result, width, POINT)]
    if block == "bottleneck":
        inner = inner_width(width)
        reduce = _conv(x, f"{result}.reduce", inner, POINT)
        middle = _conv(_output_of(reduce), f"{result}.middle", inner, around)
        adds = x.shape[1] == width and around.stride == 1
        return [
            reduce,
            middle,
            _conv(_output_of(middle), result, width, POINT, x if adds else None),
        ]
    return [_conv(x, result, width, around)]


def _output_of(kernel: Kernel) -> _Tensor:
    return _Tensor(next(iter(kernel.writes)), kernel.shape, kernel.output_precision)


def _conv(
    x: _Tensor,
    result: str,
    width: int,
    around: Window,
    added: _Tensor | None = None,
    groups: int = 1,
    output_precision: str = "",
) -> Kernel:
    """A convolution with its bias, the sum with `added` and the activation where there is one."""
    y = _Tensor(result, _strided(x, width, around.stride), output_precision or x.precision)
    weights = width * (x.shape[1] // groups) * around.kernel**2
    kind: Kind = "dilated" if around.dilation > 1 else "conv"
    return _kernel(
        "depthwise" if groups > 1 else kind,
        [x] if added is None else [x, added],
        y,
        macs=math.prod(y.shape) * weights // width,
        weight_bytes=_weight_bytes(weights, width, x.precision),
        kernel_size=(around.kernel, around.kernel),
        stride=(around.stride, around.stride),
        dilation=(around.dilation, around.dilation),
        groups=groups,
    )


def _strided(x: _Tensor, width: int, stride: int) -> tuple[int, ...]:
    return (x.shape[0], width, _part(x.shape[2], 1, stride), _part(x.shape[3], 1, stride))


def _weight_bytes(weights: int, biases: int, precision: str) -> int:
    return weights * BYTES[precision] + biases * BYTES["fp32" if precision == "int8" else precision]


def _kernel(kind: Kind, inputs: Sequence[_Tensor], y: _Tensor, **more: Any) -> Kernel:
    """A kernel; where `more` does not override it, one without arithmetic, weight and window."""
    x = inputs[0]
    fields: dict[str, Any] = {
        "macs": 0, "weight_bytes": 0, "kernel_size": (), "stride": (), "dilation": (), "groups": 1,
    }  # fmt: skip
    return Kernel(
        name=y.name,
        kind=kind,
        input_precision=x.precision,
        weight_precision=x.precision,
        output_precision=y.precision,
        reads={tensor.name: tensor.bytes for tensor in inputs},
        writes={y.name: y.bytes},
        shape=y.shape,
        in_channels=x.shape[1],
        out_channels=y.shape[1],
        nodes=(y.name,),
        **fields | more,
    )


@lru_cache(maxsize=REMEMBERED)
def _start(shape: tuple[int, ...], parts: int, of: int, precision: str) -> tuple[Kernel, ...]:
    """The image in the network's precision and at its size."""
    image, kernels = _Tensor(IMAGE, shape, "fp32"), []
    if precision != "fp32":
        reformatted = _Tensor(f"{IMAGE}.reformat", shape, precision)
        kernels.append(_kernel("reformat", [image], reformatted))
        image = reformatted
    if parts != of:
        size = (*shape[:2], *(_part(side, parts, of) for side in shape[2:]))
        kernels.append(_kernel("resize", [image], _Tensor(f"{IMAGE}.resize", size, precision)))
    return tuple(kernels)


@lru_cache(maxsize=REMEMBERED)
def _dense(
    source: str,
    in_shape: tuple[int, ...],
    outputs: int,
    precision: str,
    resized: tuple[int, int] | None,
) -> tuple[Kernel, ...]:
    """The head of one output for each cell, at the size of `resized` where it is given."""
    x = _Tensor(source, in_shape, precision)
    if resized is None:
        given = _by_layer(precision)
        return _convert_output(_conv(x, _last(given), outputs, POINT, output_precision=given))
    head = _conv(x, "head", outputs, POINT)
    y = _Tensor(_last(precision), (*head.shape[:2], *resized), precision)
    return (head, *_convert_output(_kernel("resize", [_output_of(head)], y)))


@lru_cache(maxsize=REMEMBERED)
def _pooled(
    source: str, in_shape: tuple[int, ...], outputs: int, precision: str
) -> tuple[Kernel, ...]:
    """The head of one output for each image."""
    batch, channels = in_shape[:2]
    x = _Tensor(source, in_shape, precision)
    mean = _Tensor("head.mean", (batch, channels, 1, 1), precision)
    weights, given = channels * outputs, _by_layer(precision)
    linear = _kernel(
        "gemm",
        [mean],
        _Tensor(_last(given), (batch, outputs), given),
        macs=batch * weights,
        weight_bytes=_weight_bytes(weights, outputs, precision),
    )
    return (_kernel("reduction", [x], mean), *_convert_output(linear))


def _by_layer(precision: str) -> str:
    """What a convolution or product gives at the end: from int8 it gives floats by itself."""
    return "fp32" if precision == "int8" else precision


def _last(precision: str) -> str:
    return OUTPUT if precision == "fp32" else f"{OUTPUT}.reformat"


def _convert_output(kernel: Kernel) -> tuple[Kernel, ...]:
    """With the conversion of its output to float32, where that is needed."""
    if kernel.output_precision == "fp32":
        return (kernel,)
    output = _Tensor(OUTPUT, kernel.shape, "fp32")
    return kernel, _kernel("reformat", [_output_of(kernel)], output)
