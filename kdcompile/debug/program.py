"""The exported program: what torch.export and the exporter's decompositions make before ONNX."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


def exported_program(module: "nn.Module", profile: Sequence[Sequence[int]]) -> "ExportedProgram":
    """The program that the ONNX file is written from; its nodes have the ONNX tensors' names.

    Args:
        module: takes float32 [N, C, H, W]; in inference mode, on the CPU.
        profile: smallest, typical and largest input shape.

    Raises:
        KDError: `export-failed`, `network-forward` or `export-dynamic`.
    """
    import torch

    from kdcompile.export.onnx_file import traced
    from kdcompile.export.refused import refused

    try:
        made = traced(module, profile)
    except torch.onnx.OnnxExporterError as error:
        raise refused(error, module, profile) from error
    assert made.exported_program is not None, "dynamo exports through one"
    return made.exported_program
