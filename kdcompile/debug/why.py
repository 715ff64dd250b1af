"""Reasons why two ONNX networks differ at a node: its shape, scale, attributes, constants."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from kdcompile.debug.bisect import Probe
from kdcompile.debug.pairs import match_nodes
from kdcompile.debug.tensors import computed, module_of, producers
from kdcompile.onnx_graph.graph import computing
from kdcompile.onnx_graph.session import cpu_session

Floats = NDArray[np.float32]
FP16_MAX = 65504.0
GRIDS = {"int8": 127.0, "uint8": 255.0, "float8_e4m3fn": 448.0}
COARSE = 8.0  # a scale that holds so many times what occurs wastes three of eight bits


def reasons(
    probe: Probe,
    suspect: ModelProto,
    reference: ModelProto,
    values: tuple[Floats, Floats],
    limit: float,
) -> list[str]:
    """What is seen at the tensor and its node, the most telling first.

    Args:
        probe: the first that differs.
        suspect: the network at fault.
        reference: the network that it is held against.
        values: the tensor in the reference and in the suspect, of one image.
        limit: relative error of constants that agree.
    """
    expected, got = values
    found = _values(expected, got)
    node = producers(suspect).get(probe.tensor)
    if node is None:
        return found
    match = match_nodes(suspect, reference).get(node.output[0])
    if match is None or probe.reference not in match.output:
        found += _lost(probe, node, suspect, reference)
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        found += _scale(node, suspect, expected)
    if match is not None:
        found += _attributes(node, match)
        found += _constants(node, match, suspect, reference, limit)
        if list(node.input) != list(match.input):
            found += _order(node, match)
    return found


def _values(expected: Floats, got: Floats) -> list[str]:
    if expected.shape != got.shape:
        return [f"its shape is {list(got.shape)}, the reference's {list(expected.shape)}"]
    peak = float(np.abs(expected).max(initial=0.0))
    lost = ~np.isfinite(got) & np.isfinite(expected)
    if not lost.any():
        return []
    text = f"{lost.mean():.2%} of it is NaN or infinite"
    if peak > FP16_MAX:
        text += f": the reference reaches {peak:.4g}, over float16's {FP16_MAX:g}"
    return [text]


def _lost(probe: Probe, node: NodeProto, suspect: ModelProto, reference: ModelProto) -> list[str]:
    """Nodes of the reference between what the suspect's node gives and what is expected of it."""
    theirs, matched = producers(reference), match_nodes(suspect, reference)
    own, kept = matched.get(node.output[0]), {id(match) for match in matched.values()}
    found, at = [], theirs.get(probe.reference)
    while at is not None and at is not own and id(at) not in kept:
        module = module_of(at)
        found.append(
            f"{at.op_type} {at.name} of the reference"
            + (f" (module {module})" if module else "")
            + " is lost"
        )
        at = next((theirs[name] for name in at.input if name in theirs), None)
    # a Q/DQ pair or a cast stands between a tensor and its reader, and loses nothing
    return found if own is not None and at is own else []


def _scale(node: NodeProto, suspect: ModelProto, expected: Floats) -> list[str]:
    """Whether the grid of a Q/DQ pair holds the values."""
    scale = constant(suspect, node.input[1])
    if scale is None or scale.size != 1:
        return []
    zero = constant_raw(suspect, node.input[2]) if len(node.input) > 2 else None
    grid = GRIDS.get("int8" if zero is None else str(zero.dtype), GRIDS["int8"])
    holds = float(np.abs(scale).max()) * grid
    peak = float(np.abs(expected).max(initial=0.0))
    clipped = float((np.abs(expected) > holds).mean())
    if peak > holds:
        return [
            f"its scale saturates: values reach {peak:.4g}, it holds {holds:.4g}, "
            f"{clipped:.2%} are clipped"
        ]
    if peak and holds > COARSE * peak:
        return [f"its scale is too coarse: values reach {peak:.4g}, it holds {holds:.4g}"]
    return []


def _attributes(node: NodeProto, match: NodeProto) -> list[str]:
    mine, theirs = (_given(n) for n in (node, match))
    return [
        f"{name} is {_shown(mine.get(name))}, the reference's {_shown(theirs.get(name))}"
        for name in sorted({*mine, *theirs})
        if repr(mine.get(name)) != repr(theirs.get(name))
    ]


def _given(node: NodeProto) -> Mapping[str, Any]:
    """Attributes as plain values; what holds a tensor is compared as a constant is."""
    plain = (a for a in node.attribute if not a.HasField("t") and not a.HasField("g"))
    return {a.name: helper.get_attribute_value(a) for a in plain}


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _constants(
    node: NodeProto, match: NodeProto, suspect: ModelProto, reference: ModelProto, limit: float
) -> list[str]:
    found = []
    for mine, theirs in zip(node.input, match.input, strict=False):
        a, b = constant(reference, theirs), constant(suspect, mine)
        if a is None or b is None:
            continue
        if a.shape != b.shape:
            found.append(f"constant {theirs} is {list(b.shape)}, the reference's {list(a.shape)}")
            continue
        off = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), 1e-30)
        if off > limit or not np.isfinite(off):
            found.append(f"constant {theirs} differs by {off:.2g} of its size")
    return found


def _order(node: NodeProto, match: NodeProto) -> list[str]:
    if sorted(node.input) == sorted(match.input):
        return [f"it reads {', '.join(node.input)}, the reference {', '.join(match.input)}"]
    return []


def constant(model: ModelProto, tensor: str) -> Floats | None:
    """The float64 value of a tensor that depends on no input, through Q/DQ and casts; else None."""
    found = constant_raw(model, tensor)
    return None if found is None else np.asarray(found, np.float64)


def constant_raw(model: ModelProto, tensor: str) -> NDArray[Any] | None:
    """The same in its own type."""
    stored = {t.name: t for t in model.graph.initializer}
    if tensor in stored:
        return numpy_helper.to_array(stored[tensor])
    if not tensor or tensor in computed(model) or tensor not in producers(model):
        return None
    part = computing(model, [tensor])
    del part.graph.input[:], part.graph.output[:]
    part.graph.output.append(helper.make_empty_tensor_value_info(tensor))
    value: NDArray[Any] = cpu_session(part, optimised=False).run(None, {})[0]
    return value
