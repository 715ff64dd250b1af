"""The kernels that TensorRT would make of an ONNX network, with what each computes and moves.

One kernel is a convolution or a matrix product with its bias, batch-norm, one residual sum and one
activation; an attention; a chain of pointwise operators; a pooling or another operator alone. In an
int8 network the pairs around a layer are folded into it, and the sum too where both its terms are
int8: with a float term the kernel gives floats, and the Q after it is a kernel of its own.

Not seen: reformats that change only the order of channels in memory, batch-norms before their
convolution, and normalisations that are written out in operators (they count as their parts).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Any, cast

from onnx import ModelProto

from kdcompile.latency_model.fusion import POINTWISE, POOLS, RESIZES, SCALES, WEIGHTED, Group, group
from kdcompile.latency_model.graph import BYTES, Flow, Op, attribute, flow_of
from kdcompile.latency_model.joins import COPY, place_parts
from kdcompile.latency_model.qdq_propagation import settle_pairs
from kdcompile.latency_model.workload import Kernel, Kind, Precision
from kdcompile.onnx_graph.layers import RECURRENT, inner_size, node_macs
from kdcompile.targets.limits import Operator

NORMALISATIONS = {
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization",
    "LpNormalization", "LRN",
}  # fmt: skip
REDUCTIONS = {
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd",
    "ReduceSumSquare", "ReduceLogSumExp", "ArgMax", "ArgMin",
}  # fmt: skip
COPIES = {COPY, "Concat", "Slice"}
SHUFFLES = {"Transpose", "Pad", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"}
GATHERS = {"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND"}
SORTS = {"TopK", "NonMaxSuppression"}
MEMORY = (
    ("copy", COPIES), ("shuffle", SHUFFLES), ("gather", GATHERS), ("sort", SORTS), ("pool", POOLS),
    ("resize", RESIZES), ("norm", NORMALISATIONS), ("reduction", REDUCTIONS),
)  # fmt: skip
"""Kinds of kernels that only move memory, with the operators that they are named for."""
CONVERSIONS = {"Cast", "QuantizeLinear", "DequantizeLinear"}
SOFTMAXES = {"Softmax", "LogSoftmax"}
PARTIAL = {COPY, "Slice", "Gather"}  # which read no more than they write


def kernels_of(
    model: ModelProto, shape: Sequence[int], float32_as: Precision = "fp32"
) -> list[Kernel]:
    """The kernels of one inference, in an order in which they can run.

    Args:
        model: float32, half with casts, int8 with Q/DQ, or mixed.
        shape: of the network's (first) input.
        float32_as: what the builder may make of the file's float32: a weakly typed build with the
            FP16 flag takes half; "int8" is a build with TensorRT 8's calibrator, every tensor int8.
            The network's inputs and outputs stay as the file has them.

    Raises:
        KDError: `shape-unknown`, a tensor's size does not follow from the input's;
            `kernels-unknown`, control flow.
    """
    flow = flow_of(model, shape, float32_as)
    settle_pairs(flow)
    place_parts(flow)
    groups = group(flow)
    home = {op: found for found in groups for op in found.ops}
    parts = {op.outputs[0]: op.inputs for op in flow.ops if op not in home}
    position = {op: number for number, op in enumerate(flow.ops)}
    before: dict[Group, set[Group]] = {found: set() for found in groups}
    for found in groups:
        found.ops.sort(key=position.__getitem__)
        for name in _read(found, parts):
            writer = flow.producer.get(name)
            if writer is not None:
                before[found].add(home[writer])
    return [_kernel(flow, found, parts) for found in _ordered(before, position)]


def operators_of(model: ModelProto, shape: Sequence[int]) -> list[Operator]:
    """Every operator that takes time, as a target's limits see it, in an order that can run.

    Args:
        model: before quantisation: pairs of Q and DQ would count as operators.
        shape: of the network's (first) input.

    Raises:
        KDError: `shape-unknown`, `kernels-unknown`, as for `kernels_of`.
    """
    flow = flow_of(model, shape)
    return [_operator(flow, op) for op in flow.ops]


def _operator(flow: Flow, op: Op) -> Operator:
    output = tuple(flow.sizes[op.outputs[0]])
    plain = Operator(op.node.name or op.outputs[0], op.type, output)
    if op.type in RESIZES:
        source = flow.sizes[op.node.input[0]]  # `inputs` may have the shape before a view
        pairs = zip(output[2:], source[2:], strict=True)
        return replace(plain, factor=tuple(new / old for new, old in pairs))
    if op.type not in POOLS | WEIGHTED:
        return plain
    sides = _sides(flow, op)
    axes = len(sides["kernel_size"])
    pads = attribute(op, "pads", [0] * 2 * axes)
    found = replace(
        plain, kernel=sides["kernel_size"], stride=sides["stride"], dilation=sides["dilation"],
        padding=tuple(map(max, zip(pads[:axes], pads[axes:], strict=True))),
    )  # fmt: skip
    if op.type in POOLS:
        return found
    return replace(
        found, groups=attribute(op, "group", 1), in_channels=sides["in_channels"],
        out_channels=sides["out_channels"],
        macs=node_macs(op.node, flow.sizes), weight=bool(_weight(flow, op)),
    )  # fmt: skip


def _ordered(before: Mapping[Group, set[Group]], position: Mapping[Op, int]) -> list[Group]:
    sorter = TopologicalSorter(before)
    sorter.prepare()
    ordered: list[Group] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=lambda found: position[found.ops[0]])
        ordered += ready
        sorter.done(*ready)
    return ordered


def _read(found: Group, parts: Mapping[str, list[str]]) -> list[str]:
    """The tensors that a group reads and does not make, each once, by the names of their parts."""
    inside = {name for op in found.ops for name in op.outputs}
    waiting = [name for op in found.ops for name in op.inputs if name not in inside]
    names: dict[str, None] = {}
    while waiting:
        name = waiting.pop(0)
        if name in parts:
            waiting[:0] = parts[name]
        else:
            names[name] = None
    return list(names)


def _kernel(flow: Flow, found: Group, parts: Mapping[str, list[str]]) -> Kernel:
    members = set(found.ops)
    made = [name for op in found.ops for name in op.outputs]
    written = [n for n in made if n in flow.outputs or set(flow.readers.get(n, [])) - members]
    core = found.core or found.ops[0]
    reads = {name: flow.bytes(name) for name in _read(found, parts)}
    if core.type in PARTIAL:
        taken = flow.elements(written[0])
        reads = {name: min(taken, flow.elements(name)) * BYTES[flow.types[name]] for name in reads}
    shape = flow.sizes[written[0]]
    source = flow.types[next(iter(reads))] if reads else flow.types[written[0]]
    weight = _weight(flow, core)
    held = flow.types[weight] if weight else source
    if found.quantised:  # else the builder dequantises the weight once for all
        held = flow.dequantised.get(weight, held)
    nodes = tuple(dict.fromkeys(op.node.name or op.outputs[0] for op in found.ops))
    return Kernel(
        name=" + ".join(nodes),
        kind=_kind(flow, found, core),
        input_precision=source,
        weight_precision=held,
        output_precision=flow.types[written[0]],
        macs=sum(node_macs(op.node, flow.sizes) for op in found.ops),
        reads=reads,
        writes={name: flow.bytes(name) for name in written},
        weight_bytes=_weight_bytes(flow, found, core, held),
        shape=tuple(shape),
        nodes=nodes,
        **_sides(flow, core),
    )


def _kind(flow: Flow, found: Group, core: Op) -> Kind:
    kinds = {op.type for op in found.ops}
    if found.kind == "attention":
        return "attention"
    if core.type in ("Gemm", "MatMul"):
        return "gemm"
    if core.type in WEIGHTED:
        return _convolution_kind(flow, core)
    if core.type in RECURRENT:
        return "recurrent"
    if kinds <= CONVERSIONS:
        return "reformat"
    if core.type in SOFTMAXES:
        rank = len(flow.sizes[core.node.input[0]])
        return "softmax" if attribute(core, "axis", -1) % rank == rank - 1 else "across"
    for kind, types in MEMORY:
        if core.type in types:
            return cast(Kind, kind)
    return "pointwise" if found.kind == "pointwise" else "other"


def _convolution_kind(flow: Flow, op: Op) -> Kind:
    groups, channels = attribute(op, "group", 1), flow.sizes[op.node.input[0]][1]
    if op.type == "ConvTranspose":
        return "transposed"
    if groups > 1:
        return "depthwise" if groups == channels else "grouped"
    wide = any(d > 1 for d in attribute(op, "dilations", []))
    return "dilated" if wide else "conv"


def _weight(flow: Flow, op: Op) -> str:
    """The constant that a convolution or product multiplies with; none where both are computed."""
    if op.type not in WEIGHTED:
        return ""
    return next((name for name in op.node.input[:2] if name in flow.fixed), "")


def _weight_bytes(flow: Flow, found: Group, core: Op, precision: str) -> int:
    if core.type not in WEIGHTED:
        counted = POINTWISE | NORMALISATIONS | {*RECURRENT}
        constants = [n for op in found.ops if op.type in counted for n in flow.constants(op)]
        return sum(flow.bytes(name) for name in dict.fromkeys(constants))
    weight = _weight(flow, core)
    size = flow.elements(weight) * BYTES[precision] if weight else 0
    biased = len(core.node.input) > 2 and core.node.input[2] in flow.fixed
    scales = (op for op in found.ops if op is not core and op.type in SCALES)
    biased |= any(flow.constants(op) for op in scales)
    of_bias = "fp32" if precision in ("int8", "fp8") else precision
    return size + int(biased) * _channels(flow, core)[1] * BYTES[of_bias]


def _channels(flow: Flow, op: Op) -> tuple[int, int]:
    """In and out; the inner and the last size of a matrix product."""
    output = flow.sizes[op.node.output[0]]
    data = flow.sizes.get(op.node.input[0], output) if op.node.input else output
    if op.type in ("Gemm", "MatMul"):
        return inner_size(op.node, data), output[-1]
    first, last = (size[1] if len(size) > 1 else 1 for size in (data, output))
    return first, last


def _sides(flow: Flow, core: Op) -> dict[str, Any]:
    """The fields of a kernel that follow from its core alone."""
    if core.type in RECURRENT:
        return _step(flow, core)
    first, last = _channels(flow, core)
    window: list[int] = []
    groups = attribute(core, "group", 1)
    if core.type in ("Conv", "ConvTranspose"):
        window = flow.sizes[core.node.input[1]][2:]
    elif core.type in POOLS:
        whole = flow.sizes[core.node.input[0]][2:]
        window = list(attribute(core, "kernel_shape", whole))
    elif core.type == "MatMul" and not _weight(flow, core):
        groups = math.prod(flow.sizes[core.node.output[0]][:-2])
    ones = [1] * len(window)
    return {
        "in_channels": first,
        "out_channels": last,
        "kernel_size": tuple(window),
        "stride": tuple(attribute(core, "strides", ones)) if window else (),
        "dilation": tuple(attribute(core, "dilations", ones)) if window else (),
        "groups": groups,
    }


def _step(flow: Flow, core: Op) -> dict[str, Any]:
    """Those of a recurrent layer: one step's product of input and state."""
    data, weight, state = (flow.sizes[name] for name in core.node.input[:3])
    images_first = attribute(core, "layout", 0)
    return {
        "in_channels": weight[2] + state[2],
        "out_channels": weight[1],
        "kernel_size": (),
        "stride": (),
        "dilation": (),
        "groups": weight[0],
        "steps": data[1 if images_first else 0],
    }
