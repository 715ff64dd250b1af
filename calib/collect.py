"""Histograms of a network's activations over calibration images, counted by numpy or a GPU."""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from kdcompile.calib.histogram import BINS, Counter, Counts, Histogram, merged, numpy_counts
from kdcompile.calib.residual import residual_branches
from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.layers import quantised_layers
from kdcompile.onnx_graph.session import cpu_session, feeds_of

Histograms = dict[str, Histogram]


class Counting(NamedTuple):
    """A counter, and the name that the calibration table keeps of it."""

    name: str
    counter: Counter


NUMPY = Counting("numpy", numpy_counts)


def best_counting() -> Counting:
    """The kernel `absmax_histogram` on the first GPU, if it can run there; else numpy."""
    if not _has_driver():  # to know it costs less than to import torch
        return NUMPY
    import torch

    from kdcompile.kernels._runtime import triton_problem

    if torch.cuda.is_available() and triton_problem() is None:
        return Counting("triton", TritonCounts(torch.device("cuda")))
    return NUMPY


def _has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


class TritonCounts:
    """`numpy_counts` by the kernel, equal to the last count.

    ONNX Runtime gives activations in host memory, so each is copied to the device first: the copy
    reads and moves every value once, and only the counting itself is saved.
    """

    def __init__(self, device: Any) -> None:
        self._device = device

    def __call__(self, values: NDArray[np.float32], span: float) -> Counts:
        """The counts; see `numpy_counts`."""
        import torch

        from kdcompile.kernels.absmax_histogram import absmax_histogram

        own = np.require(values.reshape(-1), np.float32, ["C", "W"])  # torch warns of read-only
        limit = torch.tensor(span, dtype=torch.float32, device=self._device)
        _, counts = absmax_histogram(torch.from_numpy(own).to(self._device), limit, BINS)
        found: Counts = counts.cpu().numpy()
        return found


def tensors_to_quantise(model: ModelProto) -> list[str]:
    """The data inputs of the layers that are quantised, each once: what int8 cannot be without.

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


def tensors_to_observe(model: ModelProto) -> list[str]:
    """`tensors_to_quantise`, and the terms of residual sums that may come through a pair too.

    A term that no layer reads, as the convolution on the skip of a block that halves its maps, has
    a range by this alone.

    Raises:
        KDError: `calib-nothing`.
    """
    names = tensors_to_quantise(model)
    terms = residual_branches(model, [layer.name for layer in quantised_layers(model)])
    return list(dict.fromkeys([*names, *terms.values()]))


def collect(
    model: ModelProto,
    images: Iterable[NDArray[np.float32]],
    names: Sequence[str],
    counting: Counting = NUMPY,
) -> Histograms:
    """Run the images one at a time and count the values of the named tensors.

    Args:
        model: the float32 network, one input.
        images: float32 [1, C, H, W] each.
        names: tensors of the network, its input among them or not.
        counting: what counts.

    Raises:
        KDError: `calib-empty` for no images, `calib-nonfinite` with the tensor at fault.
    """
    return pooled(collect_folds(model, images, names, 1, counting))


def collect_folds(
    model: ModelProto,
    images: Iterable[NDArray[np.float32]],
    names: Sequence[str],
    folds: int,
    counting: Counting = NUMPY,
) -> list[Histograms]:
    """`collect`, dealing the images out in turn to so many folds; none is without an image.

    Memory holds one image's activations, and `BINS` counts for each tensor and fold.
    """
    session, inner = _watched(model, names)
    found = [{name: Histogram() for name in names} for _ in range(folds)]
    count = 0
    for image in images:
        values = feeds_of(session, image)
        if inner:
            values |= dict(zip(inner, session.run(inner, values), strict=True))
        for name, histogram in found[count % folds].items():
            try:
                histogram.add(values[name], counting.counter)
            except KDError as error:
                error.where = f"tensor {name}, calibration image {count + 1}"
                raise
        count += 1
    if not count:
        raise KDError(
            "calib-empty",
            "there is no calibration image",
            where="[data] train",
            fix="list at least one training image; 128 to 512 are usual",
        )
    return found[:count]


def pooled(folds: Sequence[Mapping[str, Histogram]]) -> Histograms:
    """The histograms of all folds together, by tensor."""
    return {name: merged(fold[name] for fold in folds) for name in folds[0]}


def _watched(model: ModelProto, names: Sequence[str]) -> tuple[Any, list[str]]:
    """A session that gives the named tensors too, and those that are not the network's input."""
    watched = ModelProto()
    watched.CopyFrom(model)
    own = {value.name for value in model.graph.input}
    inner = [name for name in names if name not in own]
    given = {v.name for v in watched.graph.output}
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in inner
        if name not in given
    )
    return cpu_session(watched), inner
