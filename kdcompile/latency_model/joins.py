"""Copies that TensorRT makes where maps are split and joined.

A concatenation has no kernel where each of its parts is written to its place by the kernel that
makes it. By the layers of engines (docs/latency-model.md) that is so of a part that nothing else
reads; any other, and one that is resized, is made elsewhere and copied. A split copies each part.
"""

from onnx import helper

from kdcompile.latency_model.graph import Flow, Op

COPY = "Copy"
COPIED = "_copied_to_"  # between the name of what is copied and of where to
_ELSEWHERE = {"Resize", "Upsample"}


def place_parts(flow: Flow) -> None:
    """Put an operator for each copy into the flow, in place."""
    placed: list[Op] = []
    for op in flow.ops:
        if op.type == "Split":
            placed += [_copy(flow, op.inputs[0], name) for name in op.outputs]
            continue
        if op.type == "Concat" and _is_of_maps(flow, op):
            for index, name in enumerate(op.inputs):
                if not _in_place(flow, name):
                    op.inputs[index] = f"{name}{COPIED}{op.outputs[0]}"
                    placed.append(_copy(flow, name, op.inputs[index]))
        placed.append(op)
    flow.ops = placed
    flow.index()


def _is_of_maps(flow: Flow, op: Op) -> bool:
    """Whether all that it joins is computed, and each once."""
    return not flow.constants(op) and len(set(op.inputs)) == len(op.inputs)


def _in_place(flow: Flow, name: str) -> bool:
    maker = flow.producer.get(name)
    if maker is None or maker.type in _ELSEWHERE or name in flow.outputs:
        return False
    return maker.type == "Split" or flow.only_reader(name) is not None


def _copy(flow: Flow, source: str, result: str) -> Op:
    flow.sizes.setdefault(result, flow.sizes[source])
    flow.types[result] = flow.types[source]
    node = helper.make_node("Identity", [source], [result], name=f"{result} copy")
    return Op(COPY, node, [source], [result])
