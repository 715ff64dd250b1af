"""Histograms of a network's activations over calibration images."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from kdcompile.calib.histogram import Histogram
from kdcompile.calib.layers import quantised_layers
from kdcompile.calib.session import cpu_session
from kdcompile.errors import KDError


def tensors_to_observe(model: ModelProto) -> list[str]:
    """The data inputs of the layers that are quantised, each once.

    Raises:
        KDError: `calib-nothing`: there is no such layer.
    """
    names = list(dict.fromkeys(layer.data for layer in quantised_layers(model)))
    if not names:
        raise KDError(
            "calib-nothing",
            "the network has no layer to quantise: only its output layer has weights",
            where="student",
            fix='set quantize.precision = "fp32" or "fp16"',
        )
    return names


def collect(
    model: ModelProto, images: Iterable[NDArray[np.float32]], names: Sequence[str]
) -> dict[str, Histogram]:
    """Run the images one at a time and count the values of the named tensors.

    Args:
        model: the float32 network, one input.
        images: float32 [1, C, H, W] each.
        names: tensors of the network, its input among them or not.

    Raises:
        KDError: `calib-empty` for no images, `calib-nonfinite` with the tensor at fault.
    """
    watched = ModelProto()
    watched.CopyFrom(model)
    feed = model.graph.input[0].name
    inner = [name for name in names if name != feed]
    given = {v.name for v in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in inner
        if name not in given
    )
    session = cpu_session(watched)
    histograms = {name: Histogram() for name in names}
    count = 0
    for image in images:
        count += 1
        values = dict(zip(inner, session.run(inner, {feed: image}), strict=True)) if inner else {}
        for name, histogram in histograms.items():
            try:
                histogram.add(values.get(name, image))
            except KDError as error:
                error.where = f"tensor {name}, calibration image {count}"
                raise
    if not count:
        raise KDError(
            "calib-empty",
            "there is no calibration image",
            where="[data] train",
            fix="list at least one training photo; 128 to 512 are usual",
        )
    return histograms
