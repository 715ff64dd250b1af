"""`deepstream/`: a segmenter for NVIDIA's Gst-nvinfer, whose own parser reads its output.

nvinfer computes net-scale-factor * (x - offset) of each pixel, with one factor for all channels,
and its parser takes the class of the largest value that is over `segmentation-threshold` and over
-1: of logits below that it would say that there is no class. So the network in this folder ends in
probabilities, and begins with a factor of each channel where the deviations of
`preprocess.json` differ.

Source of keys and parser: Gst-nvinfer's page of the DeepStream guide, and
`SegmentPostprocessor::fillSegmentationOutput` of its `nvdsinfer_context_impl_output_parsing.cpp`.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdcompile.bundle.samples import IO, fill
from kdcompile.core.escape import plain
from kdcompile.core.files import write_text
from kdcompile.core.optional import need
from kdcompile.data.preprocess import INPUTS

FOLDER, CONFIG, LABELS = "deepstream", "config_infer_primary.txt", "labels.txt"
TASK = "segmentation"
COLOURS = {3: 0, 1: 2}  # model-color-format by channels: RGB, GRAY
MODES = {"fp32": 0, "fp16": 2}  # network-mode by precision; any other has Q/DQ
QUANTISED = 1
PER_AXIS = 13  # opset since which Softmax is along one axis
BOXES = (
    "the parser of boxes that is built into nvinfer reads the two grids of DetectNet_v2, outputs "
    "with cov and bbox in their names: boxes of another head need a parser of yours"
)


def refusal(preprocess: Mapping[str, Any], io: IO, task: str) -> str | None:
    """Why nvinfer cannot run a network without a parser of the user's; None where it can.

    Args:
        preprocess: `preprocess.json`.
        io: the network's inputs and outputs.
        task: the kind that its outputs are like.
    """
    if task != TASK:
        return BOXES if task == "detection" else f"nvinfer has no parser of {task}"
    if preprocess.get(INPUTS) is not None or len(io[0]) != 1 or len(io[1]) != 1:
        return "nvinfer gives a network one image"
    if preprocess.get("in_graph"):
        return (
            'nvinfer gives float32 [N, C, H, W], not the pixels of export.preprocess = "in-graph"'
        )
    if any(tensor.type != "FLOAT" for side in io for tensor in side):
        return "nvinfer's parser reads float32 alone"
    if min(*io[0][0].dims, *io[1][0].dims) < 1:
        return "nvinfer scales frames to one size, and this network takes several"
    return None


def told(why_not: str | None) -> str:
    """What a reader is told of the folder, given what `refusal` says."""
    if why_not is not None:
        return f"There is no `{FOLDER}/`: {why_not}."
    return f"`{FOLDER}/` is for NVIDIA's Gst-nvinfer; what it sees otherwise is in its {CONFIG}."


def write_deepstream(
    folder: Path,
    preprocess: Mapping[str, Any],
    io: IO,
    classes: Sequence[str] | None,
    precision: str,
    target: str,
) -> None:
    """Write the configuration, the labels and the network of a task without `refusal`.

    Args:
        folder: the bundle, with `model.onnx`.
        preprocess: `preprocess.json`.
        io: the network's inputs and outputs.
        classes: their names, by index.
        precision: of the network.
        target: the device, for the file's comment.
    """
    onnx = need("onnx", "cpu", "reading the network")
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    (folder / FOLDER).mkdir()
    std = [float(value) for value in preprocess["std"]]
    _, channels, height, width = io[0][0].dims
    count = io[1][0].dims[1]
    model = onnx.load(folder / "model.onnx")
    onnx.save(
        _adapted(onnx, model, np.float32(std[0]) / np.array(std, np.float32)),
        folder / FOLDER / "model.onnx",
    )
    names = list(classes or map(str, range(count)))
    write_text(folder / FOLDER / LABELS, "".join(f"{_label(name)}\n" for name in names))
    config = fill(
        f"{CONFIG}.j2",
        target=target,
        precision=precision,
        scale=repr(1 / (255 * std[0])),
        offsets=";".join(repr(255 * float(value)) for value in preprocess["mean"]),
        colours=COLOURS[channels],
        dims=f"{channels};{height};{width}",
        batch=io[0][0].dims[0],
        mode=MODES.get(precision, QUANTISED),
        quantised=precision not in MODES,
        classes=count,
        output=io[1][0].dims[2:],
    )
    write_text(folder / FOLDER / CONFIG, config)


def _label(name: str) -> str:
    """One line of the labels, in which nvinfer takes a semicolon for the end of a name."""
    return plain(name).replace(";", ",")


def _adapted(onnx: Any, model: Any, factors: Any) -> Any:
    """The network with the rest of its normalisation before it, and probabilities behind it."""
    graph, make = model.graph, onnx.helper.make_node
    opset = next(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
    assert opset.version >= PER_AXIS, "targets have a later one"
    (given,), (logits,) = (_fed(graph), graph.output)
    if (factors != 1).any():
        for node in graph.node:
            node.input[:] = ["scaled_image" if name == given.name else name for name in node.input]
        shape = factors.astype(np.float32).reshape(1, -1, 1, 1)
        graph.initializer.append(onnx.numpy_helper.from_array(shape, "scale_of_channel"))
        graph.node.insert(0, make("Mul", [given.name, "scale_of_channel"], ["scaled_image"]))
    graph.node.append(make("Softmax", [logits.name], ["probabilities"], axis=1))
    logits.name = "probabilities"
    return model


def _fed(graph: Any) -> list[Any]:
    fixed = {initializer.name for initializer in graph.initializer}
    return [value for value in graph.input if value.name not in fixed]
