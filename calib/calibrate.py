"""From an ONNX file and images to its calibration table."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from kdcompile.calib.collect import NUMPY, collect, tensors_to_observe
from kdcompile.calib.histogram import Histogram
from kdcompile.calib.observers import find_calibrator
from kdcompile.calib.table import CalibrationTable, tensor_range


def calibrate(
    model: ModelProto,
    onnx_sha256: str,
    images: Iterable[NDArray[np.float32]],
    identities: Sequence[tuple[str, str]],
    calibrator: str,
) -> CalibrationTable:
    """Ranges for the data inputs of every quantised layer.

    Args:
        model: the float32 network.
        onnx_sha256: hash of its file.
        images: float32 [1, C, H, W] each, read once and one at a time.
        identities: name and SHA-256 of each image.
        calibrator: its name, as `[quantize] calibrator` has it.

    Raises:
        KDError: `calib-empty`, `calib-nonfinite` or `calib-nothing`.
    """
    histograms = collect(model, images, tensors_to_observe(model))
    return table_of(histograms, onnx_sha256, identities, calibrator)


def table_of(
    histograms: Mapping[str, Histogram],
    onnx_sha256: str,
    identities: Sequence[tuple[str, str]],
    calibrator: str,
    counted_by: str = NUMPY.name,
) -> CalibrationTable:
    """The table that a calibrator makes of histograms by tensor; the rest as in `calibrate`.

    Raises:
        KDError: `calib-empty` or `calib-nonfinite`.
    """
    choose = find_calibrator(calibrator)
    tensors = {}
    for name, histogram in histograms.items():
        amax = choose(histogram)
        clipped = histogram.clipped(amax)
        tensors[name] = tensor_range(amax, clipped, histogram.minimum, histogram.maximum)
    return CalibrationTable(calibrator, onnx_sha256, tuple(identities), tensors, counted_by)
