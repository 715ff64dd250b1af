"""Q/DQ propagation as TensorRT does it: Q as early, DQ as late in the graph as possible.

An operator that only chooses or moves values gives the same integers as it would floats, so Q
changes places with it and it works on a quarter of the bytes. See "Explicit Quantization" in
TensorRT's documentation (Q/DQ propagation).
"""

from kdcompile.latency_model.graph import Flow, Op

COMMUTING = {"MaxPool", "Transpose", "Concat", "Slice", "DepthToSpace", "SpaceToDepth"}
Q, DQ = "QuantizeLinear", "DequantizeLinear"


def settle_pairs(flow: Flow) -> None:
    """Move, merge and cancel Q and DQ; then give each reader of a DQ one of its own."""
    moving = True
    while moving:
        # a step that did something changed the list, so the search begins anew
        moving = any(step(flow, op) for op in flow.ops for step in STEPS)
    _copy_for_readers(flow)


def _replace(flow: Flow, old: str, new: str) -> None:
    for op in flow.ops:
        op.inputs = [new if name == old else name for name in op.inputs]


def _merge(flow: Flow, op: Op) -> bool:
    """Two Q of one scale on one tensor are one."""
    if op.type != Q:
        return False
    for other in flow.readers[op.inputs[0]]:
        if other is op or other.type != Q or other.scale != op.scale:
            continue
        if other.outputs[0] not in flow.outputs:
            _replace(flow, other.outputs[0], op.outputs[0])
            first = min(flow.ops.index(op), flow.ops.index(other))
            flow.ops = [o for o in flow.ops if o is not op and o is not other]
            flow.ops.insert(first, op)
            flow.index()
            return True
    return False


def _cancel(flow: Flow, op: Op) -> bool:
    """DQ then Q of the same scale gives the integers back."""
    before = flow.producer.get(op.inputs[0]) if op.type == Q else None
    if before is None or before.type != DQ or before.scale != op.scale:
        return False
    if op.outputs[0] in flow.outputs:
        return False
    _replace(flow, op.outputs[0], before.inputs[0])
    flow.ops.remove(op)
    if not _needed(flow, before):
        flow.ops.remove(before)
    flow.index()
    return True


def _needed(flow: Flow, op: Op) -> bool:
    name = op.outputs[0]
    return name in flow.outputs or any(name in other.inputs for other in flow.ops)


def _retreat(flow: Flow, op: Op) -> bool:
    """Q after a commuting operator that nothing else reads goes before it, on each input."""
    if op.type != Q:
        return False
    before = flow.producer.get(op.inputs[0])
    if before is None or before.type not in COMMUTING or len(before.outputs) != 1:
        return False
    if flow.only_reader(before.outputs[0]) is not op:
        return False
    result = op.outputs[0]
    fresh = []
    for name in dict.fromkeys(before.inputs):
        early = f"{name}_before_{result}"
        flow.sizes[early], flow.types[early] = flow.sizes[name], flow.types[result]
        fresh.append(Op(Q, op.node, [name], [early], op.scale))
        before.inputs = [early if n == name else n for n in before.inputs]
    before.outputs = [result]
    flow.ops.remove(op)
    where = flow.ops.index(before)
    flow.ops[where:where] = fresh
    flow.index()
    return True


def _delay(flow: Flow, op: Op) -> bool:
    """A commuting operator on nothing but DQ of one scale works on the integers."""
    if op.type not in COMMUTING or len(op.outputs) != 1:
        return False
    before = [flow.producer.get(name) for name in op.inputs]
    pairs = [p for p in before if p is not None and p.type == DQ]
    if len(pairs) != len(before) or len({p.scale for p in pairs}) != 1:
        return False
    result = op.outputs[0]
    inner = f"{result}_quantized"
    flow.sizes[inner], flow.types[inner] = flow.sizes[result], flow.types[pairs[0].inputs[0]]
    op.inputs, op.outputs = [p.inputs[0] for p in pairs], [inner]
    late = Op(DQ, pairs[0].node, [inner], [result], pairs[0].scale)
    flow.ops.insert(flow.ops.index(op) + 1, late)
    flow.ops = [o for o in flow.ops if o.type != DQ or _needed(flow, o)]
    flow.index()
    return True


def _copy_for_readers(flow: Flow) -> None:
    """One DQ for each reader, which can then take it in or not by itself."""
    body = []
    for op in flow.ops:
        body.append(op)
        readers = flow.readers.get(op.outputs[0], []) if op.type == DQ else []
        spare = readers if op.type == DQ and op.outputs[0] in flow.outputs else readers[1:]
        for number, reader in enumerate(spare, 1):
            copy = f"{op.outputs[0]}_{number}"
            flow.sizes[copy] = flow.sizes[op.outputs[0]]
            flow.types[copy] = flow.types[op.outputs[0]]
            reader.inputs = [copy if n == op.outputs[0] else n for n in reader.inputs]
            body.append(Op(DQ, op.node, list(op.inputs), [copy], op.scale))
    flow.ops = body
    flow.index()


STEPS = (_merge, _cancel, _retreat, _delay)
