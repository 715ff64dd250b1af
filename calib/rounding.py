"""Learnt rounding of a network's weights, layer by layer, on sampled inputs of each.

The weights that come back lie on the int8 grid of the scales that they had, so that
`qdq.insert_qdq`, which rounds to nearest, gives the codes that were learnt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto

from kdcompile.calib.adaround import Problem, Settings, learn_rounding
from kdcompile.calib.qdq import weight_scales
from kdcompile.onnx_graph.graph import (
    Floats,
    Graph,
    Images,
    attributes,
    by_channel,
    computing,
    copied,
    is_plain,
    quantised_outputs,
)
from kdcompile.onnx_graph.layers import Layer, quantised_layers
from kdcompile.onnx_graph.session import cpu_session, feeds_of

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


COLUMNS_MB = 64  # of a layer's sampled inputs
MOST_COLUMNS = 16384
HELD = 5  # each fifth image evaluates what the others taught


@dataclass(frozen=True)
class Rounded:
    """A layer's mean squared output error on held images, to nearest and learnt; `kept` or not."""

    layer: str
    nearest: float
    learnt: float
    kept: bool


@dataclass
class _Site:
    """A layer to round, and the samples of it: per image, positions and float32 outputs."""

    layer: Layer
    shape: Geometry | None  # None for a matrix product
    count: int  # positions per image
    samples: list[tuple[Places, Floats, int]]


def round_weights(
    reference: ModelProto,
    model: ModelProto,
    images: Images,
    quantise: Callable[[ModelProto], ModelProto],
    settings: Settings | None = None,
) -> tuple[ModelProto, list[Rounded]]:
    """A copy of the model with weights on their int8 grid, and what each layer gained.

    Covered are 2-D convolutions with explicit pads and matrix products whose output the reference
    has too; other layers are left to round to nearest. So is a layer whose learnt codes are no
    better on the held images.

    Args:
        reference: float32; its outputs, tensor by tensor of the same name, are the goal.
        model: float32, what will be quantised.
        images: float32 [1, C, H, W] each, iterated once for every layer and once more.
        quantise: from a float32 network to the Q/DQ network that will run.
        settings: how rounding is learnt.
    """
    result = copied(model)
    graph = Graph(result)
    known = {name for node in reference.graph.node for name in node.output}
    covered = known & quantised_outputs(quantise(model))
    sites = [
        site
        for layer in quantised_layers(result)
        if layer.node.output[0] in covered
        and (site := _site(layer, graph, len(images))) is not None
    ]
    _sample_outputs(reference, sites, images)
    rounded = []
    for site in sites:
        columns, image_of = _sample_inputs(quantise(result), site, images, graph)
        rounded.append(_round_layer(graph, site, columns, image_of, settings or Settings()))
    return result, rounded


def _site(layer: Layer, graph: Graph, images: int) -> _Site | None:
    shape, is_product = geometry(layer, graph), layer.node.op_type in ("Gemm", "MatMul")
    if not is_plain(layer, graph) or (shape is None and not is_product):
        return None
    groups, _, inputs, taps = by_channel(layer, graph.array(layer.weight)).shape
    fit = COLUMNS_MB * 2**20 // (4 * groups * inputs * taps)
    return _Site(layer, shape, max(1, min(MOST_COLUMNS, fit) // images), [])


def _sample_outputs(reference: ModelProto, sites: list[_Site], images: Images) -> None:
    tensors = [site.layer.node.output[0] for site in sites]
    session = cpu_session(computing(reference, tensors), as_written=True)
    for index, image in enumerate(images):
        values = session.run(tensors, feeds_of(session, image))
        for place, (site, value) in enumerate(zip(sites, values, strict=True)):
            places, rows = sample(value, site.count, [place, index], site.shape is not None)
            site.samples.append((places, rows, value.shape[-1]))


def _sample_inputs(
    quantised: ModelProto, site: _Site, images: Images, graph: Graph
) -> tuple[Floats, NDArray[np.intp]]:
    """Columns [groups, n, inputs] of what the quantised network feeds to a layer; their images."""
    output = site.layer.node.output[0]
    (node,) = (n for n in quantised.graph.node if output in n.output)
    session = cpu_session(computing(quantised, [node.input[0]]), as_written=True)
    groups, _, inputs, taps = by_channel(site.layer, graph.array(site.layer.weight)).shape
    found = []
    for image, (places, _, width) in zip(images, site.samples, strict=True):
        (data,) = session.run(None, feeds_of(session, image))
        if site.shape is None:
            found.append(data.reshape(-1, data.shape[-1])[places][None])
            continue
        read = patches(data, site.shape, places, width).reshape(groups, inputs, -1, taps)
        found.append(read.swapaxes(1, 2).reshape(groups, -1, inputs * taps))
    lengths = [len(places) for places, _, _ in site.samples]
    return np.concatenate(found, axis=1), np.repeat(np.arange(len(lengths)), lengths)


def _round_layer(
    graph: Graph, site: _Site, columns: Floats, image_of: NDArray[np.intp], settings: Settings
) -> Rounded:
    layer = site.layer
    weight = graph.array(layer.weight)
    view = by_channel(layer, weight)
    groups, outputs = view.shape[:2]
    scale = weight_scales(weight, layer.axis).reshape(groups, outputs, 1)
    targets = np.concatenate([rows for _, rows, _ in site.samples])
    bias = _bias(graph, layer, groups * outputs)
    reader = graph.only_reader(layer.node.output[0])
    problem = Problem(
        torch.from_numpy(view.reshape(groups, outputs, -1) / scale),
        torch.from_numpy(scale),
        torch.from_numpy(bias.reshape(groups, 1, outputs)),
        torch.from_numpy(columns),
        torch.from_numpy(targets.reshape(-1, groups, outputs).swapaxes(0, 1).copy()),
        reader is not None and reader.op_type == "Relu",
    )
    held = torch.from_numpy(image_of % HELD == 0)
    codes = learn_rounding(problem.rows(~held), settings)
    judge = problem.rows(held)
    nearest, learnt = (float(judge.error(c)) for c in (problem.weight.round(), codes))
    kept = learnt < nearest
    if kept:
        view[...] = (codes.numpy() * scale).reshape(view.shape)
        graph.set(layer.weight, weight)
    return Rounded(layer.name, nearest, learnt, kept)


def _bias(graph: Graph, layer: Layer, outputs: int) -> Floats:
    """A layer's bias [outputs], zeros where it has none."""
    name = layer.node.input[2] if len(layer.node.input) > 2 else ""
    given = graph.array(name) if name else np.zeros(1, np.float32)
    return np.broadcast_to(given.reshape(-1), outputs).copy()
