"""A network's operators as a target's limits see them (`kdcompile.targets.limits`)."""

from collections.abc import Sequence
from typing import Any

from onnx import ModelProto

from kdcompile.latency_model.fusion import POOLS, RESIZES, WEIGHTED
from kdcompile.latency_model.graph import Flow, Op, attribute, flow_of
from kdcompile.onnx_graph.macs import inner_size, node_macs
from kdcompile.targets.limits import Operator


def operators_of(model: ModelProto, shape: Sequence[int]) -> list[Operator]:
    """Every operator that takes time, in an order in which they can run; constants are folded.

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
    name = op.node.name or op.outputs[0]
    if op.type in RESIZES:
        source = flow.sizes[op.node.input[0]]  # `inputs` may have the shape before a view
        factor = tuple(new / old for new, old in zip(output[2:], source[2:], strict=True))
        return Operator(name, op.type, output, factor=factor)
    if op.type in POOLS:
        return Operator(name, op.type, output, **_window(flow, op))
    if op.type in WEIGHTED:
        return _weighted(flow, op, Operator(name, op.type, output))
    return Operator(name, op.type, output)


def _weighted(flow: Flow, op: Op, plain: Operator) -> Operator:
    """A convolution or a product with its channels and multiply-adds."""
    data, macs = flow.sizes[op.node.input[0]], node_macs(op.node, flow.sizes)
    fixed = any(name in flow.fixed for name in op.node.input[:2])
    if op.type in ("Conv", "ConvTranspose"):
        return Operator(
            plain.name, op.type, plain.shape, groups=attribute(op, "group", 1),
            in_channels=data[1], out_channels=plain.shape[1], weight=fixed,
            macs=macs, **_window(flow, op),
        )  # fmt: skip
    return Operator(
        plain.name, op.type, plain.shape, in_channels=inner_size(op.node, data),
        out_channels=plain.shape[-1], macs=macs, weight=fixed,
    )  # fmt: skip


def _window(flow: Flow, op: Op) -> dict[str, Any]:
    """The fields of an operator that follow from its window."""
    if op.type in POOLS:  # a global one's window is the whole image
        kernel = attribute(op, "kernel_shape", flow.sizes[op.node.input[0]][2:])
    else:
        kernel = flow.sizes[op.node.input[1]][2:]
    ones, pads = [1] * len(kernel), attribute(op, "pads", [0] * 2 * len(kernel))
    sides = zip(pads[: len(kernel)], pads[len(kernel) :], strict=True)
    return {
        "kernel": tuple(kernel),
        "stride": tuple(attribute(op, "strides", ones)),
        "dilation": tuple(attribute(op, "dilations", ones)),
        "padding": tuple(map(max, sides)),
    }
