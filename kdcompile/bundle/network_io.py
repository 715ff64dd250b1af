"""What a network file takes and gives, as the samples and a server must know it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.core.optional import need


@dataclass(frozen=True)
class Tensor:
    """An input or an output: its name, ONNX element type and sizes, -1 where they may vary."""

    name: str
    type: str
    dims: tuple[int, ...]


def network_io(path: Path) -> tuple[Tensor, Tensor]:
    """The input and the output of an ONNX file.

    Raises:
        KDError: `onnx-refused`, it has not one of each.
        ToolMissingError: onnx is not installed.
    """
    onnx = need("onnx", "cpu", "reading the network")
    graph = onnx.load(path, load_external_data=False).graph
    fixed = {initializer.name for initializer in graph.initializer}
    inputs = [value for value in graph.input if value.name not in fixed]
    if (len(inputs), len(graph.output)) != (1, 1):
        raise KDError(
            "onnx-refused",
            f"{path.name} has {len(inputs)} inputs and {len(graph.output)} outputs, not one each",
            where=str(path),
            fix="export it again: kdcompile export",
        )
    return _tensor(onnx, inputs[0]), _tensor(onnx, graph.output[0])


def _tensor(onnx: Any, value: Any) -> Tensor:
    kind = value.type.tensor_type
    dims = (d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    return Tensor(value.name, str(onnx.TensorProto.DataType.Name(kind.elem_type)), tuple(dims))
