"""An ONNX file as a PyTorch network whose layers are torch's own: traced and narrowed as any other.

Every convolution, linear layer, norm and recurrent layer becomes a module, named as its weights are
in the file. Arithmetic on sizes stays arithmetic on sizes, and numbers in reshapes follow the axes
that they are made of, so that other widths and batches run. One operator is one function in the
file of its kind, under `@operator(NAME)`. Everything floating is computed in float32.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.models.onnx_import.converter import Converter
from kdcompile.models.onnx_import.graph_file import GraphFile, Input, read_inputs


def inputs_of(path: Path) -> list[Input]:
    """Name, shape and type of each input of an ONNX file; its weights are not read.

    A dynamic axis has the file's name of it, or None.

    Raises:
        KDError: `onnx-missing` or `onnx-unreadable`.
    """
    return read_inputs(path)


def load_onnx(path: Path, shapes: Mapping[str, Sequence[int]] | Sequence[int] = ()) -> nn.Module:
    """The network in an ONNX file, in inference mode; `forward` has the file's inputs by name.

    Args:
        path: the file, of opset 7 or newer, with the files of its external data.
        shapes: of inputs by name, or of the one input: example sizes for axes that the file leaves
            open. A batch is 1 by default. The network runs at other batches, and at other sizes
            where its operators do.

    Raises:
        KDError: `onnx-missing`, `onnx-unreadable`, `onnx-opset`, `onnx-quantised`, `onnx-shape`;
            `onnx-operator`, with all operators that are not read; `onnx-node`.
    """
    file = GraphFile(path)
    inputs = file.inputs()
    given = shapes if isinstance(shapes, Mapping) else {inputs[0][0]: shapes} if shapes else {}
    return Converter(file, {one[0]: _example(one, given.get(one[0]), path) for one in inputs}).run()


def _example(asked: Input, given: Sequence[int] | None, path: Path) -> list[int]:
    """All sizes of an input: those that are given, else the file's."""
    name, shape, _ = asked
    if given is not None and len(given) == len(shape):
        return list(given)
    known = [1 if place == 0 and not isinstance(n, int) else n for place, n in enumerate(shape)]
    open_axes = [str(n or place) for place, n in enumerate(known) if not isinstance(n, int)]
    if given is not None or open_axes:
        what = f"has {len(shape)} axes, not {len(given)}" if given is not None else (
            f"leaves axes open: {', '.join(open_axes)}"
        )  # fmt: skip
        raise KDError(
            "onnx-shape",
            f"the network's input {name!r} {what}",
            where=str(path),
            fix="give export.shape as the network takes it",
        )
    return [n for n in known if isinstance(n, int)]


__all__ = ["Input", "inputs_of", "load_onnx"]
