"""Layer norms that a file has as means, differences and a root: one layer of torch's again.

In half precision the squares overflow where the operator does not, and a layer's weights can be
solved for where loose constants cannot.
"""

from onnx import NodeProto
from torch import Tensor, nn

from kdcompile.models.onnx_import.layers import with_weights
from kdcompile.models.onnx_import.values import Call, Node, axes_of


def layer_norm_from(node: Node) -> Call | None:
    """The layer norm of the last axis that begins with a ReduceMean; None where none does."""
    (x, *_), rank = node.proto.input, len(node.value(0).shape)
    axes = node.ints("axes", 1)
    if not isinstance(axes, list) or axes_of(axes, rank) != [rank - 1]:
        return None
    difference = _only(node, node.proto.output[0], "Sub")
    if difference is None or list(difference.input) != [x, node.proto.output[0]]:
        return None
    readers = {reader.op_type: reader for reader in node.readers(difference.output[0])}
    root = _deviation(node, readers.get("Pow") or readers.get("Mul"), difference.output[0])
    divided = readers.get("Div")
    if root is None or divided is None or len(readers) != 2 or divided.input[1] != root[0]:
        return None
    scaled = _with_constant(node, divided.output[0], "Mul")
    shifted = scaled and _with_constant(node, scaled[0].output[0], "Add")
    if not scaled or not shifted:
        return None
    size = node.value(0).shape[-1]
    if any(tensor.numel() != size for _, tensor in (scaled, shifted)):
        return None
    for used in (difference, *root[2], divided, scaled[0], shifted[0]):
        node.skip(used)
    made = with_weights(nn.LayerNorm(size, root[1]), weight=scaled[1], bias=shifted[1])
    return Call(made, [node.value(0)], outputs=list(shifted[0].output))


def _deviation(
    node: Node, square: NodeProto | None, difference: str
) -> tuple[str, float, list[NodeProto]] | None:
    """The root of the mean square and epsilon: its name, epsilon, and the nodes."""
    if square is None or square.input[0] != difference:
        return None
    if square.op_type == "Pow":
        power = node.constants(square.input[1])
        if power is None or power.numel() != 1 or power.item() != 2:
            return None
    elif list(square.input) != [difference] * 2:
        return None
    mean = _only(node, square.output[0], "ReduceMean")
    added = mean and _with_constant(node, mean.output[0], "Add")
    root = added and _only(node, added[0].output[0], "Sqrt")
    if mean is None or not added or root is None or added[1].numel() != 1:
        return None
    return root.output[0], float(added[1].item()), [square, mean, added[0], root]


def _only(node: Node, name: str, kind: str) -> NodeProto | None:
    """The one node that reads a tensor, where it is of a kind."""
    readers = node.readers(name)
    return readers[0] if len(readers) == 1 and readers[0].op_type == kind else None


def _with_constant(node: Node, name: str, kind: str) -> tuple[NodeProto, Tensor] | None:
    """The one node that reads a tensor and a constant, and that."""
    reader = _only(node, name, kind)
    others = [other for other in reader.input if other != name] if reader is not None else []
    found = node.constants(others[0]) if len(others) == 1 else None
    return None if reader is None or found is None else (reader, found)
