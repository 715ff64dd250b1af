"""Sampled inputs of a layer as columns, and the outputs that belong to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcompile.onnx_graph.graph import Floats, Graph, attributes
from kdcompile.onnx_graph.layers import Layer

Places = NDArray[np.intp]


@dataclass(frozen=True)
class Geometry:
    """How a 2-D convolution reads its input; pads are top, left, bottom, right."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]


def geometry(layer: Layer, graph: Graph) -> Geometry | None:
    """The geometry of a 2-D Conv with explicit pads, else None."""
    given, shape = attributes(layer.node), graph.constants[layer.weight].dims
    padded = given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    if layer.node.op_type != "Conv" or len(shape) != 4 or not padded:
        return None
    return Geometry(
        (shape[2], shape[3]),
        tuple(given.get("strides", (1, 1))),
        tuple(given.get("dilations", (1, 1))),
        tuple(given.get("pads", (0, 0, 0, 0))),
    )


def sample(outputs: Floats, count: int, seed: Sequence[int], is_map: bool) -> tuple[Places, Floats]:
    """At most `count` distinct positions of a layer's output, and its channels there.

    Args:
        outputs: [1, O, H, W] for a map, else [..., O].
        count: positions wanted.
        seed: of the draw.
        is_map: whether channels lie on axis 1.

    Returns:
        Positions [n], flat, and values [n, O].
    """
    rows = (
        outputs[0].reshape(outputs.shape[1], -1).T
        if is_map
        else outputs.reshape(-1, outputs.shape[-1])
    )
    places = np.random.default_rng(seed).permutation(len(rows))[:count]
    return places, rows[places]


def patches(data: Floats, shape: Geometry, places: Places, width: int) -> Floats:
    """The inputs that a convolution reads at some positions of its output.

    Args:
        data: [1, I, H, W].
        shape: of the convolution.
        places: flat positions [n] in an output of `width` columns.
        width: of the output.

    Returns:
        [I, n, taps], taps in the order of the kernel.
    """
    top, left, bottom, right = shape.pads
    padded = np.pad(data[0], ((0, 0), (top, bottom), (left, right)))
    taps = np.indices(shape.kernel).reshape(2, -1)
    y, x = (
        place[:, None] * shape.strides[axis] + taps[axis] * shape.dilations[axis]
        for axis, place in enumerate(divmod(places, width))
    )
    return padded[:, y, x]
