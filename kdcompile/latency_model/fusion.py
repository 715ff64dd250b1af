"""Operator fusion: groups of operators that one kernel computes, by TensorRT 8 and 10's rules.

Sources: "Layer Fusion Catalog" and "Explicit Quantization" in TensorRT's documentation.
TensorRT-RTX 1.7 differs: there bias, activation and the next Q of an int8 convolution are a kernel
of their own, so this counts fewer kernels than it runs.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from kdcompile.latency_model.fusion_rules import (
    costs_nothing,
    is_of_channels,
    is_plain_pad,
    is_sum,
    is_swap,
)
from kdcompile.latency_model.graph import Flow, Op

Q, DQ = "QuantizeLinear", "DequantizeLinear"
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
POOLS = {
    "MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool",
}  # fmt: skip
RESIZES = {"Resize", "Upsample"}
ACTIVATIONS = {"Relu", "Clip", "LeakyRelu", "Gelu"}
"""Those that the catalogue lists after a convolution; any other is a pointwise kernel."""
SCALES = {"BatchNormalization", "Add", "Sub", "Mul", "Div"}
POINTWISE = {
    "Abs", "Add", "And", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu",
    "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Where", "Xor",
}  # fmt: skip
BETWEEN = {"Add", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Sub", "Where"}
"""What may stand between the two products of an attention in addition to the softmax."""


@dataclass(eq=False)
class Group:
    """The operators of one kernel; `core` is what it is named for, none in a pointwise one."""

    ops: list[Op]
    core: Op | None = None
    kind: str = ""
    quantised: bool = False


def group(flow: Flow) -> list[Group]:
    """Every operator in one group, concatenations that cost nothing left out."""
    groups = _Groups(flow)
    for op in flow.ops:
        if op.type == "Softmax":
            groups.attention(op)
    for op in reversed(flow.ops):  # of two convolutions that are added, the later one adds
        if op.type in WEIGHTED and op not in groups.of:
            groups.weighted(op)
    for op in flow.ops:
        if op.type in POOLS | RESIZES and op not in groups.of:
            groups.simple(op)
    groups.pointwise()
    groups.conversions()
    groups.share_pairs()
    free = {op for op in flow.ops if op.type == "Concat" and costs_nothing(flow, op)}
    for op in flow.ops:
        if op not in groups.of and op not in free:
            groups.start(op)
    return list({id(found): found for found in groups.of.values()}.values())


class _Groups:
    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self.of: dict[Op, Group] = {}

    def start(self, core: Op) -> Group:
        found = self.of[core] = Group([core], core)
        return found

    def join(self, found: Group, ops: Iterable[Op]) -> None:
        for op in ops:
            if op not in self.of:
                found.ops.append(op)
                self.of[op] = found

    def pairs_before(self, op: Op) -> list[Op]:
        """The free DQ that give the operator's inputs."""
        before = (self.flow.producer.get(name) for name in op.inputs)
        return [p for p in before if p is not None and p.type == DQ and p not in self.of]

    def next(self, tensor: str) -> Op | None:
        """The one operator after, where it is still free."""
        op = self.flow.only_reader(tensor)
        return op if op is not None and op not in self.of else None

    def attention(self, softmax: Op) -> None:
        """Two products of activations with a softmax between them, and the transposes around.

        At any precision and size, though TensorRT asks for half or less and for some head sizes.
        """
        inside = [softmax]
        head = self.flow.producer.get(softmax.inputs[0])
        while head is not None and head.type in BETWEEN and self.next(head.outputs[0]):
            inside.append(head)
            before = [self.flow.producer.get(name) for name in head.inputs]
            likely = [p for kind in ({"MatMul"}, BETWEEN) for p in before if p and p.type in kind]
            head = likely[0] if likely else None  # a mask may be computed too
        tail = self.next(softmax.outputs[0])
        while tail is not None and tail.type == "Cast":
            inside.append(tail)
            tail = self.next(tail.outputs[0])
        if head is None or tail is None or {head.type, tail.type} != {"MatMul"}:
            return
        if len(head.inputs) < 2 or len(tail.inputs) < 2 or not self.next(head.outputs[0]):
            return
        found = self.start(head)
        found.kind = "attention"
        self.join(found, [*inside, tail])
        for op in (head, tail):
            before = [self.flow.producer.get(name) for name in op.inputs]
            self.join(found, [p for p in before if p and self._turns(p)])
        after = self.next(tail.outputs[0])
        if after is not None and after.type == "Transpose":
            self.join(found, [after])

    def _turns(self, op: Op) -> bool:
        return op.type == "Transpose" and self.flow.only_reader(op.outputs[0]) is not None

    def weighted(self, op: Op) -> None:
        """A convolution or product with its scale and bias, then one sum, then one activation."""
        found = self.start(op)
        pairs = self.pairs_before(op)
        held = [n for n in self.flow.constants(op)[:1] if n in op.node.input[:2]]
        integers = all(name in self.flow.dequantised for name in held)
        if pairs and len(pairs) == len(op.inputs) and integers:
            found.quantised = True
            self.join(found, pairs)
        self._before(found, op)
        float_sum = False
        tensor, stage = op.outputs[0], 0
        while (after := self.next(tensor)) is not None:
            if stage == 0 and after.type in SCALES and after.inputs == [tensor]:
                if not is_of_channels(self.flow, op, after):
                    break
            elif stage == 0 and is_sum(self.flow, after):
                stage = 1
                other = self.pairs_before(after) if found.quantised else []
                float_sum = not other
                self.join(found, other)
            elif after.type in ACTIVATIONS and len(after.inputs) == 1 and stage < 2:
                stage = 2
            else:
                break
            self.join(found, [after])
            tensor = after.outputs[0]
        self._after(found, op, tensor, float_sum)

    def _after(self, found: Group, op: Op, tensor: str, float_sum: bool) -> None:
        """An int8 layer gives out integers, or floats of any width, by itself."""
        after = self.next(tensor)
        integers = found.quantised or self.flow.types[op.inputs[0]] in ("int8", "fp8")
        if after is None or not integers:
            return
        if (after.type == Q and not float_sum) or (after.type == "Cast" and self._is_float(after)):
            self.join(found, [after])

    def _is_float(self, cast: Op) -> bool:
        kinds = {self.flow.types[name] for name in cast.outputs}
        after = self.flow.only_reader(cast.outputs[0])
        return kinds <= {"fp32", "fp16", "bf16"} and (after is None or after.type != Q)

    def _before(self, found: Group, op: Op) -> None:
        """Zeros around an image, or a matrix turned for its product, are read as they are."""
        for name in op.inputs:
            before = self.flow.producer.get(name)
            if before is None or self.flow.only_reader(name) is not op:
                continue
            padded = op.type == "Conv" and before.type == "Pad" and is_plain_pad(self.flow, before)
            turned = op.type == "MatMul" and before.type == "Transpose" and is_swap(before)
            if padded or turned:
                self.join(found, [before])

    def simple(self, op: Op) -> None:
        """Pooling and resizing work on integers where both sides are integers."""
        found = self.start(op)
        pairs, after = self.pairs_before(op), self.next(op.outputs[0])
        if pairs and len(pairs) == len(op.inputs) and after is not None and after.type == Q:
            found.quantised = True
            self.join(found, [*pairs, after])

    def pointwise(self) -> None:
        """Chains and trees of pointwise operators on tensors of one size."""
        for op in self.flow.ops:
            if op in self.of or op.type not in POINTWISE:
                continue
            found = self.of[op] = Group([op], kind="pointwise")
            self.join(found, self.pairs_before(op))
            for name in op.inputs:
                before = self.flow.producer.get(name)
                other = self.of.get(before) if before is not None else None
                if before is None or other is None or other is found or other.kind != "pointwise":
                    continue
                same = self.flow.elements(name) == self.flow.elements(op.outputs[0])
                around = self._leads_around(other, found) or self._leads_around(found, other)
                if same and not around:
                    other.ops += found.ops
                    self.of |= dict.fromkeys(found.ops, other)
                    found = other

    def _leads_around(self, first: Group, last: Group) -> bool:
        """Whether a way leads from `first` to `last` through operators of neither."""
        waiting = list(first.ops)
        seen: set[int] = set()
        while waiting:
            op = waiting.pop()
            for reader in (r for name in op.outputs for r in self.flow.readers.get(name, [])):
                inside = self.of.get(reader)
                if inside is first or (inside is last and op in first.ops):
                    continue
                if inside is last:
                    return True
                fresh = inside.ops if inside is not None else [reader]
                if id(reader) not in seen:
                    seen |= {id(other) for other in fresh}
                    waiting += fresh
        return False

    def conversions(self) -> None:
        """Q ends a pointwise kernel that gives nothing else; DQ and Q in a row are one kernel."""
        for op in self.flow.ops:
            if op.type != Q or op in self.of:
                continue
            before = self.flow.producer.get(op.inputs[0])
            found = self.of.get(before) if before is not None else None
            if found is not None and found.kind == "pointwise" and self._ends_in(found, op):
                self.join(found, [op])
            else:
                fresh = self.of[op] = Group([op], kind="pointwise")
                self.join(fresh, self.pairs_before(op))

    def share_pairs(self) -> None:
        """The DQ that no reader takes in are one kernel for each tensor of integers."""
        first: dict[str, Op] = {}
        for op in [o for o in self.flow.ops if o.type == DQ and o not in self.of]:
            kept = first.setdefault(op.inputs[0], op)
            if kept is op or op.outputs[0] in self.flow.outputs:
                continue
            for reader in self.flow.readers[op.outputs[0]]:
                same = {op.outputs[0]: kept.outputs[0]}
                reader.inputs = [same.get(name, name) for name in reader.inputs]
            self.flow.ops.remove(op)
        self.flow.index()

    def _ends_in(self, found: Group, op: Op) -> bool:
        names = {name for inner in found.ops for name in inner.outputs}
        outside = [
            reader
            for name in names
            for reader in self.flow.readers.get(name, [])
            if self.of.get(reader) is not found
        ]
        return outside == [op] and not names & self.flow.outputs
