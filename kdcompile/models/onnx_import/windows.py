"""Operators that slide a window over space: pooling, padding, resizing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.models.onnx_import.values import Call, Node, Value, axes_of, operator

MAX_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVERAGE_POOLS = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
MEANS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
LARGEST = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}
MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
SMOOTH = {
    ("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear",
    ("cubic", 2): "bicubic",
}  # fmt: skip


def padded(
    node: Node, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    value: float = 0.0,
) -> tuple[Any, list[int]]:  # fmt: skip
    """A window's input and the padding of both sides that the layer does itself.

    Where start and end differ, the input is padded before and the layer pads nothing.
    """
    space, image, auto = len(kernel), node.value(0), node.get("auto_pad", "NOTSET")
    pads = list(node.get("pads", [0] * 2 * space)) if auto == "NOTSET" else [0] * 2 * space
    if auto.startswith("SAME"):
        if any(stride > 1 for stride in strides):
            arguments = [list(kernel), list(strides), list(dilations), auto == "SAME_UPPER", value]
            return Call(pad_same, [image, *arguments]), [0] * space
        whole = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
        less, more = [w // 2 for w in whole], [w - w // 2 for w in whole]
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    if pads[:space] == pads[space:]:
        return image, pads[:space]
    return Call(functional.pad, [image, _flat(pads), "constant", value]), [0] * space


def _flat(pads: Sequence[Any]) -> list[Any]:
    """ONNX's starts and ends as torch's pairs from the last axis."""
    half = len(pads) // 2
    return [pads[i + side * half] for i in reversed(range(half)) for side in (0, 1)]


def pad_same(
    image: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    upper: bool, value: float,
) -> Tensor:  # fmt: skip
    """Pad so that a window of a stride gives ceil(size / stride) values."""
    pads: list[int] = []
    sides = zip(image.shape[-len(kernel) :], kernel, strides, dilations, strict=True)
    for size, k, s, d in reversed(list(sides)):
        whole = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pads += [whole // 2, whole - whole // 2] if upper else [whole - whole // 2, whole // 2]
    return functional.pad(image, pads, "constant", value)


@operator("MaxPool", "AveragePool")
def pool(node: Node) -> Call:
    """The largest or the mean of each window."""
    kernel, largest = node.attributes["kernel_shape"], node.proto.op_type == "MaxPool"
    space = len(kernel)
    strides = node.get("strides", [1] * space)
    dilations = node.get("dilations", [1] * space)
    image, pads = padded(node, kernel, strides, dilations, float("-inf") if largest else 0.0)
    ceil, counts = bool(node.get("ceil_mode", 0)), bool(node.get("count_include_pad", 0))
    if len(node.proto.output) > 1 and node.proto.output[1]:
        raise node.refused("its indices are read")
    if any(2 * p > k for p, k in zip(pads, kernel, strict=True)):
        raise node.refused("its padding is more than half its window")
    kind: Any = (MAX_POOLS if largest else AVERAGE_POOLS)[space]
    if largest:
        made = kind(kernel, strides, pads, dilations, ceil_mode=ceil)
        return Call(made, [image])
    if isinstance(image, Call) and not counts:
        raise node.refused("its padding is not counted and differs between the start and the end")
    if any(d > 1 for d in dilations):
        raise node.refused("its window is dilated")
    return Call(kind(kernel, strides, pads, ceil_mode=ceil, count_include_pad=counts), [image])


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node) -> Call:
    """One value of each channel."""
    kinds: Any = LARGEST if node.proto.op_type == "GlobalMaxPool" else MEANS
    return Call(kinds[len(node.value(0).shape) - 2](1), [node.value(0)])


@operator("Pad")
def pad(node: Node) -> Call:
    """Of any axes; from opset 18 on of named ones."""
    data, pads = node.value(0), node.known("pads", 1)
    mode, rank = node.get("mode", "constant"), len(node.value(0).shape)
    value = node.get("value", 0.0)
    if node.has(2):
        value = node.constant(2).item()
    axes = axes_of(node.known("axes", 3, range(rank)), rank)
    full = [0] * 2 * rank
    for place, axis in enumerate(axes):
        full[axis], full[axis + rank] = int(pads[place]), int(pads[place + len(axes)])
    flat = _flat(full)
    while flat and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    if not flat:
        return Call(None, [data])
    if mode == "constant":
        return Call(functional.pad, [data, flat, mode, value])
    if len(flat) > 2 * max(rank - 2, 1) or min(flat) < 0:
        raise node.refused(f"it pads batch or channels in mode {mode}")
    flat += [0] * (2 * max(rank - 2, 1) - len(flat))
    return Call(functional.pad, [data, flat, MODES[mode]])


@operator("Resize", "Upsample")
def resize(node: Node) -> Call:
    """Images [N, C, *space] in space, where torch computes the same."""
    image = node.value(0)
    size, rank = image.shape, len(image.shape)
    at = 1 if node.opset < 11 else 2
    scales = node.ints("scales", at)
    sizes = node.ints("sizes", 3) if not scales and node.opset >= 11 else None
    axes = axes_of(node.known("axes", 9, range(rank)), rank)
    if isinstance(scales, Value) or node.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.refused("its scales are computed")
    wanted: Any = None
    if isinstance(sizes, Value):
        if len(sizes.example) != rank:
            raise node.refused("its sizes are computed for some axes alone")
        wanted, made = Call(last_of, [sizes, 2]), [int(one) for one in sizes.example]
    else:
        full: list[float] = [1.0] * rank
        given = scales or [s / size[a] for s, a in zip(sizes or [], axes, strict=True)]
        for axis, scale in zip(axes, given, strict=True):
            full[axis] = scale
        made = [int(np.floor(n * s + 1e-6)) for n, s in zip(size, full, strict=True)]
        scales = None if any(n * s % 1 > 1e-6 for n, s in zip(size, full, strict=True)) else full
        wanted = made[2:]
    if made[:2] != size[:2]:
        raise node.refused("it resizes batch or channels")
    mode = _mode(node, size[2:], made[2:], scales)
    options: dict[str, Any] = {"mode": mode}
    if mode not in ("nearest", "nearest-exact"):
        options["align_corners"] = node.get("coordinate_transformation_mode", "") == "align_corners"
        options["antialias"] = bool(node.get("antialias", 0))
    if isinstance(wanted, list) and scales:
        return Call(functional.interpolate, [image], options | {"scale_factor": scales[2:]})
    return Call(functional.interpolate, [image], options | {"size": wanted})


def last_of(numbers: list[Any], first: int) -> list[Any]:
    """The numbers from one on."""
    return numbers[first:]


def _mode(node: Node, before: Sequence[int], after: Sequence[int], scales: Any) -> str:
    """Torch's name of what gives the same."""
    mode = node.get("mode", "nearest")
    usual = "asymmetric" if node.opset < 11 else "half_pixel"
    how = node.get("coordinate_transformation_mode", usual)
    same = list(before) == list(after)
    if mode == "nearest":
        for name in ("nearest", "nearest-exact"):
            if all(_alike(node, name, how, a, b) for a, b in zip(before, after, strict=True)):
                return name
    found = SMOOTH.get((mode, len(before)))
    centred = how in ("half_pixel", "align_corners") or (
        how == "pytorch_half_pixel" and all(size > 1 for size in after)
    )
    cubic = mode != "cubic" or abs(node.get("cubic_coeff_a", -0.75) + 0.75) < 1e-6
    if found is None or not cubic or not (centred or same) or node.get("exclude_outside", 0):
        raise node.refused(f"it resizes by {mode} with coordinates {how}")
    return found


def _alike(node: Node, name: str, how: str, before: int, after: int) -> bool:
    """Whether torch takes the pixels that ONNX's rule takes, along one axis."""
    at, scale = np.arange(after), after / before
    places: Any
    if how == "asymmetric":
        places = at / scale
    elif how == "align_corners":
        places = at * (before - 1) / max(after - 1, 1)
    else:
        places = (at + 0.5) / scale - 0.5
    rounding = node.get("nearest_mode", "round_prefer_floor" if node.opset >= 11 else "floor")
    whole = {
        "floor": np.floor(places), "ceil": np.ceil(places),
        "round_prefer_floor": np.ceil(places - 0.5), "round_prefer_ceil": np.floor(places + 0.5),
    }[rounding]  # fmt: skip
    asked = np.clip(whole, 0, before - 1)
    line = torch.arange(before, dtype=torch.float32)[None, None]
    return bool((functional.interpolate(line, size=after, mode=name)[0, 0].numpy() == asked).all())
