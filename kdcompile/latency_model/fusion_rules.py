"""Conditions on an operator's attributes and constants under which it can be fused."""

from onnx import numpy_helper

from kdcompile.latency_model.graph import Flow, Op, attribute


def is_sum(flow: Flow, op: Op) -> bool:
    """An Add of two different tensors of one size."""
    return (
        op.type == "Add"
        and len(set(op.inputs)) == 2
        and all(flow.elements(n) == flow.elements(op.outputs[0]) for n in op.inputs)
    )


def is_of_channels(flow: Flow, core: Op, op: Op) -> bool:
    """Whether the operator's constants are one number or one for each channel."""
    size = flow.sizes[core.node.output[0]]
    axis = 1 if core.type in ("Conv", "ConvTranspose") else len(size) - 1
    channels = size[axis]
    for name in flow.constants(op):
        dims = flow.sizes.get(name, [0])
        if op.type == "BatchNormalization":
            continue
        lined = [1] * (len(size) - len(dims)) + list(dims)
        if any(dim != 1 and (index != axis or dim != channels) for index, dim in enumerate(lined)):
            return False
    return op.type not in ("Sub", "Div") or op.node.input[0] not in flow.fixed


def is_plain_pad(flow: Flow, op: Op) -> bool:
    """Whether an image is padded with zeros, on no other axes."""
    if attribute(op, "mode", b"constant") != b"constant":
        return False
    given = [flow.values.get(name) for name in op.node.input[1:] if name]
    if not given or any(value is None for value in given) or len(given) > 2:
        return False
    pads, *fill = (numpy_helper.to_array(value) for value in given if value is not None)
    half = len(pads) // 2
    outside = [*pads[:2], *pads[half : half + 2], *(value.item() for value in fill)]
    return int(pads.min()) >= 0 and not any(outside)


def is_swap(op: Op) -> bool:
    """Whether a transpose turns the last two axes alone."""
    order = list(attribute(op, "perm", []))
    last = len(order) - 1
    return last > 0 and bool(order == [*range(last - 1), last, last - 1])


def costs_nothing(flow: Flow, op: Op) -> bool:
    """Each part is written by one kernel into its place, if it has but one place to be in."""
    if flow.constants(op) or len(set(op.inputs)) != len(op.inputs):
        return False
    for name in op.inputs:
        joins = [r for r in flow.readers[name] if r.type == "Concat"]
        if name not in flow.producer or len(joins) != 1 or name in flow.outputs:
            return False
    return True
