"""The calibration table of a student that was trained in int8: its own scales, nothing observed.

`qad.json` comes from PyTorch, the table is for an ONNX file. What belongs together is found by
content: a layer's scales by output channel are its fingerprint, whatever its tensors are named,
and a match proves that the file rounds its weights as the training did.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from kdcompile.calib.qdq import weight_scales
from kdcompile.calib.table import INT8_MAX, CalibrationTable, TensorRange
from kdcompile.core.errors import KDError
from kdcompile.core.readers import read_json
from kdcompile.onnx_graph.layers import Layer, quantised_layers

RELATIVE = 1e-4  # of a scale: folding a batch norm reorders a few float32 products
FILE = "qad.json"


def read_qad(folder: Path) -> dict[str, Any]:
    """What the distillation wrote there.

    Raises:
        KDError: `qad-table`: it wrote nothing, so the student was not trained in int8, or the file
            is no such record.
    """
    path = folder / FILE
    try:
        found = read_json(path)
        assert isinstance(found["layers"], list)
        assert isinstance(found["tensors"], list)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise KDError(
            "qad-table",
            f"this is no record of quantisation-aware distillation: {error}",
            where=str(path),
            fix="kdcompile distill writes one, with quantize.qad = true",
        ) from error
    return dict(found)


def table_from_qad(model: ModelProto, onnx_sha256: str, qad: Mapping[str, Any]) -> CalibrationTable:
    """Ranges for the data inputs of every quantised layer: those that the student learnt with.

    Args:
        model: the float32 network, exported from the student.
        onnx_sha256: hash of its file.
        qad: from `read_qad`.

    Raises:
        KDError: `qad-mismatch`: the file is of another student, or its quantised layers are not
            those that were trained.
    """
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    waiting = list(qad["layers"])
    tensors: dict[str, TensorRange] = {}
    for layer in quantised_layers(model):
        scales = weight_scales(weights[layer.weight], layer.axis)
        trained = _take(waiting, scales, layer)
        entry = qad["tensors"][trained["tensor"]]
        found = TensorRange(amax=INT8_MAX * entry["scale"], **entry)
        if tensors.setdefault(layer.data, found) != found:
            raise _mismatch(layer, f"{layer.data} has two scales in the training")
    if waiting:
        raise KDError(
            "qad-mismatch",
            f"the ONNX file does not quantise {waiting[0]['module']}, which was trained in int8",
            where=FILE,
            fix=_FIX,
        )
    images = tuple((image["name"], image["sha256"]) for image in qad["images"])
    return CalibrationTable(f"qad-{qad['scales']}", onnx_sha256, images, tensors)


def _take(
    waiting: list[Mapping[str, Any]], scales: NDArray[np.float32], layer: Layer
) -> Mapping[str, Any]:
    """The first trained layer with these weight scales; calls of a shared layer come in order."""
    for place, trained in enumerate(waiting):
        if any(_close(trained[kind], scales) for kind in ("folded_scales", "weight_scales")):
            return waiting.pop(place)
    raise _mismatch(layer, "no layer that was trained in int8 has its weights")


def _close(trained: Sequence[float], scales: NDArray[np.float32]) -> bool:
    flat = scales.reshape(-1)
    return len(trained) == flat.size and np.allclose(trained, flat, rtol=RELATIVE, atol=0)


_FIX = (
    "set quantize.qad = false and calibrate instead, and report the network's layers; an ONNX file "
    "that was changed by hand needs exporting again"
)


def _mismatch(layer: Layer, why: str) -> KDError:
    name = layer.node.name or layer.node.output[0]
    return KDError("qad-mismatch", f"the ONNX layer {name}: {why}", where=FILE, fix=_FIX)
