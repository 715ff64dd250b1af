"""Explicit fp8 (E4M3) Q/DQ: for compute capability 8.9 and up, where int8's tools carry over.

Ranges and layers are int8's; only the grid differs. E4M3 keeps 3 bits of mantissa at every
magnitude down to 2^-6 (Micikevicius et al., "FP8 Formats for Deep Learning", 2022), so an outlier
costs the small values less than it does in int8.
"""

from collections.abc import Collection

import onnx
from onnx import ModelProto, TensorProto, version_converter

from kdcompile.calib.qdq import Grid, choose_layers, insert_pairs
from kdcompile.calib.table import CalibrationTable
from kdcompile.core.errors import KDError

OPSET = 19  # the first whose QuantizeLinear knows fp8
IR_VERSION = 9  # the first that can hold it
E4M3 = Grid(TensorProto.FLOAT8E4M3FN, 448.0)


def insert_fp8(
    model: ModelProto, table: CalibrationTable, layers: Collection[str] | None = None
) -> ModelProto:
    """The network with fp8 pairs on the inputs and weights of its quantised layers.

    Weights stay float32 with a pair each, so the file is no smaller than fp32's.

    Args:
        model: float32; one of an older opset is raised to 19.
        table: ranges of int8, of which only the magnitudes count: scales are amax / 448.
        layers: names of those to quantise (`Layer.name`); None for all.

    Raises:
        KDError: `fp8-opset`: the network cannot be raised; `calib-table`, `calib-layer`.
    """
    raised = _raised(model)
    return insert_pairs(raised, table, E4M3, "float", choose_layers(raised, layers))


def _raised(model: ModelProto) -> ModelProto:
    version = max(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    result = ModelProto()
    try:
        result.CopyFrom(
            model if version >= OPSET else version_converter.convert_version(model, OPSET)
        )
    except RuntimeError as error:
        raise KDError(
            "fp8-opset",
            f"the network of opset {version} has no form in opset {OPSET}: {error}",
            fix='set quantize.precision = "int8" or "fp16"',
        ) from error
    result.ir_version = max(result.ir_version, IR_VERSION)
    onnx.checker.check_model(result)
    return result
