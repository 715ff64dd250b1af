"""The exported program: what torch.export and the exporter's decompositions make before ONNX."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcompile.errors import KDError
from kdcompile.export.onnx_file import INPUT, quiet_exporter
from kdcompile.export.opset import EXPORTED_OPSET

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

AXES = {0: "batch", 2: "height", 3: "width"}


def exported_program(module: "nn.Module", profile: Sequence[Sequence[int]]) -> "ExportedProgram":
    """The program that the ONNX file is written from; its nodes have the ONNX tensors' names.

    Args:
        module: takes float32 [N, C, H, W]; in inference mode, on the CPU.
        profile: smallest, typical and largest input shape.

    Raises:
        KDError: `export-failed`.
    """
    import torch

    low, _, high = profile
    dims = {
        axis: torch.export.Dim(name, min=low[axis], max=high[axis])
        for axis, name in AXES.items()
        if low[axis] != high[axis]
    }
    try:
        with quiet_exporter():
            made = torch.onnx.export(
                module,
                (torch.zeros(tuple(high)),),
                input_names=[INPUT],
                opset_version=EXPORTED_OPSET,
                dynamic_shapes=(dims,) if dims else None,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise KDError(
            "export-failed",
            f"torch.onnx cannot export the network: {str(error).strip().splitlines()[0]}",
            where=type(module).__name__,
            fix="kdcompile export, which names what it cannot trace",
        ) from error
    assert made is not None, "without a path the exporter returns its program"
    assert made.exported_program is not None, "dynamo exports through one"
    return made.exported_program
