"""A program of `torch.export` (.pt2) as a network whose layers are torch's own.

The program is one flat list of operators on bare tensors, of one batch; written as ONNX in memory
and read by `onnx_import`, its layers are modules again, and other widths and batches run.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.models.onnx_import import load_onnx

OPSET = 23  # with RMS and group norms and GELU as operators


def load_program(path: Path, shapes: Any = ()) -> nn.Module:
    """The network in a program, in float32 and inference mode.

    Args:
        path: what `torch.export.save` wrote.
        shapes: as of `load_onnx`; not read where the program has one shape.

    Raises:
        KDError: `program-missing`, `program-unreadable`, `program-operator`; those of `load_onnx`.
    """
    program = _read(path)
    with scratch() as folder:
        file = folder / "program.onnx"
        try:
            with _quiet():
                torch.onnx.export(
                    program, (), file, opset_version=OPSET, dynamo=True, verbose=False,
                    external_data=False, optimize=False,
                )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise KDError(
                "program-operator",
                f"the program has an operator that is not read: {reason}",
                where=str(path),
                fix="give the network as teacher.model with its factory",
            ) from error
        return load_onnx(file, shapes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of its own code and of libraries that are not there."""
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registry.setLevel(level)


def _read(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "there is no such file"
        raise KDError("program-missing", what, str(path), "correct the path")
    try:
        return torch.export.load(path)
    except Exception as error:  # zipfile's, torch's and its schema's, by what is damaged
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise KDError(
            "program-unreadable",
            f"the file is no program of this version of torch: {reason}",
            where=str(path),
            fix="write it with torch.export.save(torch.export.export(network, (x,)), PATH); of a "
            "TorchScript network export the one that it was made from",
        ) from error
