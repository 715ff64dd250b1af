"""The exported program: what torch.export and the exporter's decompositions make before ONNX."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcompile.errors import KDError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def exported_program(module: "nn.Module", profile: Sequence[Sequence[int]]) -> "ExportedProgram":
    """The program that the ONNX file is written from; its nodes have the ONNX tensors' names.

    Args:
        module: takes float32 [N, C, H, W]; in inference mode, on the CPU.
        profile: smallest, typical and largest input shape.

    Raises:
        KDError: `export-failed`.
    """
    import torch

    from kdcompile.export.onnx_file import traced

    try:
        made = traced(module, profile)
    except torch.onnx.OnnxExporterError as error:
        raise KDError(
            "export-failed",
            f"torch.onnx cannot export the network: {str(error).strip().splitlines()[0]}",
            where=type(module).__name__,
            fix="kdcompile export, which names what it cannot trace",
        ) from error
    assert made.exported_program is not None, "dynamo exports through one"
    return made.exported_program
