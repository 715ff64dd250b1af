"""Read an ONNX file for import: its inputs, its constants in float32, its operators' names."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from kdcompile.core.errors import KDError

OLDEST_OPSET = 7
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
QUANTISED_STARTS = ("QLinear", "QAttention", "QGemm", "ConvInteger", "MatMulInteger", "MatMulNBits")
OWN_DOMAINS = ("", "ai.onnx")
HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


# a name, sizes (a dynamic axis has the file's name of it, or None), and a type
Input = tuple[str, list[int | str | None], torch.dtype]


class GraphFile:
    """A checked ONNX model, with its functions inlined and the readers of each tensor."""

    def __init__(self, path: Path) -> None:
        """Read the file and the files of its external data.

        Raises:
            KDError: `onnx-unreadable`, `onnx-opset` or `onnx-quantised`.
        """
        self.path = path
        self.model = _read(path)
        if self.model.functions:
            from onnx import inliner

            self.model = inliner.inline_local_functions(self.model)
        self.opset = max(
            (o.version for o in self.model.opset_import if o.domain in OWN_DOMAINS), default=0
        )
        if self.opset < OLDEST_OPSET:
            raise KDError(
                "onnx-opset",
                f"the file has opset {self.opset}; {OLDEST_OPSET} is the oldest that is read",
                where=str(path),
                fix="export the network again, or convert the file with onnx.version_converter",
            )
        _refuse_quantised(self.model.graph, path)

    @property
    def graph(self) -> GraphProto:
        """The main graph."""
        return self.model.graph

    def inputs(self) -> list[Input]:
        """Name, shape and type of each input that is no constant."""
        return _inputs(self.graph)


def read_inputs(path: Path) -> list[Input]:
    """The inputs of a file whose external data need not be there.

    Raises:
        KDError: `onnx-missing` or `onnx-unreadable`.
    """
    return _inputs(_read(path, weights=False).graph)


def _inputs(graph: GraphProto) -> list[Input]:
    constants = {tensor.name for tensor in graph.initializer}
    found = []
    for value in graph.input:
        if value.name not in constants:
            kind = value.type.tensor_type
            shape = [(d.dim_value if d.dim_value > 0 else d.dim_param or None)
                     for d in kind.shape.dim]  # fmt: skip
            found.append((value.name, shape, torch_type(kind.elem_type)))
    return found


def _read(path: Path, weights: bool = True) -> ModelProto:
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "there is no such file"
        raise KDError("onnx-missing", what, str(path), "correct the path")
    try:
        model = onnx.load(path, load_external_data=weights)
    except Exception as error:  # protobuf's, onnx's and the system's, by what is damaged
        reason = str(error).strip().partition("\n")[0]
        raise KDError(
            "onnx-unreadable",
            f"the file is no whole ONNX network: {reason}",
            where=str(path),
            fix="copy or export it again, with the files of its weights",
        ) from error
    if not model.graph.node:
        raise KDError(
            "onnx-unreadable",
            "the file holds no operators of an ONNX network",
            where=str(path),
            fix="copy or export it again",
        )
    return model


def _refuse_quantised(graph: GraphProto, path: Path) -> None:
    found = Counter(
        node.op_type
        for node in graph.node
        if node.op_type in QUANTISED or node.op_type.startswith(QUANTISED_STARTS)
    )
    if found:
        many = ", ".join(f"{count} {name}" for name, count in found.most_common(3))
        raise KDError(
            "onnx-quantised",
            f"the network in the file is quantised ({many}); a teacher is a float network",
            where=str(path),
            fix="give the float network that it was quantised from, as teacher.onnx",
        )


def torch_type(elem_type: int) -> torch.dtype:
    """A tensor's type in the imported network, which computes in float32."""
    if elem_type in HALF:
        return torch.float32
    array = helper.tensor_dtype_to_np_dtype(elem_type)
    return torch.from_numpy(numpy_helper.to_array(TensorProto(data_type=elem_type, dims=[0]))
                            .astype(array)).dtype  # fmt: skip


def tensor_of(proto: TensorProto, folder: Path) -> Tensor:
    """A constant, in float32 where it is of another floating type."""
    array = numpy_helper.to_array(proto, str(folder)).copy()
    if proto.data_type in HALF:
        array = array.astype("float32")
    return torch.from_numpy(array)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """A node's attributes as Python values, strings decoded."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {n: v.decode() if isinstance(v, bytes) else v for n, v in found.items()}


def operators(nodes: Sequence[NodeProto]) -> Iterator[tuple[str, str]]:
    """The operator and the name of each node; foreign operators with their domain."""
    for node in nodes:
        foreign = "" if node.domain in OWN_DOMAINS else f"{node.domain}."
        yield foreign + node.op_type, node.name or (node.output[0] if node.output else "")


def readers_of(graph: GraphProto) -> Mapping[str, list[NodeProto]]:
    """The nodes that read each tensor; the graph's outputs count as read twice."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(node)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                for inner in attribute.g.node:
                    for name in inner.input:
                        found.setdefault(name, []).extend([inner, inner])
    for value in graph.output:
        found.setdefault(value.name, []).extend([NodeProto(), NodeProto()])
    return found
