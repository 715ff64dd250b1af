"""Proof that an exported file holds the network and nothing of its training."""

from collections import Counter
from collections.abc import Iterator, Mapping
from operator import attrgetter

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor, nn

from kdcompile.core.errors import KDError

TRAIN_TIME = ("Dropout", "Identity")
STRUCTURAL = 16  # a constant of so few numbers (a scale, a bound) is not a layer's weight
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def prove_clean(
    model: ModelProto, module: nn.Module, captured: Mapping[str, object] | None = None
) -> int:
    """Check that no node is of training and every weight is one of the module's.

    A constant is accounted for by its name and size, or by its size alone where the exporter
    folded a normalisation or transposed a matrix. Each tensor of the module accounts for one.

    Args:
        model: the file.
        module: the network.
        captured: what the exporter found in the network's forward beside its parameters and
            buffers, by name. Where it is known and none of it is a weight, a constant that is not
            accounted for is computed from the module's own: a table that is looked up, a grid of
            points, an initial state.

    Returns:
        How many weights the file holds, which is never more than the module has.

    Raises:
        KDError: `export-leftover`.
    """
    for node in nodes_of(model.graph):
        training = any(a.name == "training_mode" and a.i for a in node.attribute)
        if node.op_type in TRAIN_TIME or training:
            raise _leftover(f"node {node.op_type} {node.name!r}")
    own = {
        name: tensor.numel()
        for name, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
    held = dict(_float_constants(model.graph))
    unnamed = {name: size for name, size in held.items() if own.get(name) != size}
    free = Counter(size for name, size in own.items() if held.get(name) != size)
    if captured is not None:
        _refuse_unregistered(captured, module)
    for name, size in unnamed.items():
        if free[size]:
            free[size] -= 1
        elif captured is not None:
            del held[name]
        elif size > STRUCTURAL:
            raise _leftover(f"constant {name!r} of {size} numbers")
    total = sum(size for name, size in held.items() if name not in unnamed or size > STRUCTURAL)
    if total > sum(own.values()):
        raise _leftover(f"{total} weights, the network has {sum(own.values())}")
    return total


def _refuse_unregistered(captured: Mapping[str, object], module: nn.Module) -> None:
    """Refuse tensors that the forward uses and the module does not know.

    A plain attribute without a gradient is a table that the module keeps; what lies in a list, in
    a closure or in a global may be a weight that nothing trains or saves.
    """
    for name, value in captured.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if value.numel() <= STRUCTURAL or _is_table(module, name):
            continue
        raise KDError(
            "export-leftover",
            f"forward() uses a tensor of {list(value.shape)} that is no parameter, buffer or "
            f"attribute of the network ({name})",
            where=type(module).__name__,
            fix="register it (nn.Parameter, register_buffer, nn.ModuleList), and leave adapters "
            "and losses out of forward()",
        )


def _is_table(module: nn.Module, name: str) -> bool:
    try:
        found = attrgetter(name)(module)
    except AttributeError:
        return False
    return isinstance(found, Tensor) and not found.requires_grad


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """Every node, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from nodes_of(inner)


def _float_constants(graph: GraphProto) -> Iterator[tuple[str, int]]:
    for tensor in graph.initializer:
        if tensor.data_type in FLOATS:
            yield tensor.name, int(np.prod(tensor.dims, dtype=np.int64))
    for node in nodes_of(graph):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR and attribute.t.data_type in FLOATS:
                yield node.output[0], numpy_helper.to_array(attribute.t).size


def _leftover(what: str) -> KDError:
    return KDError(
        "export-leftover",
        f"the exported network holds {what}, which the network in inference mode does not need",
        where="export",
        fix="call eval() and leave adapters and losses out of the network's forward",
    )
