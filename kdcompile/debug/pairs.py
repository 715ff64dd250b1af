"""Pairs of corresponding tensors of two forms of a network, and how they depend on each other.

Between two ONNX files nodes are matched by name, else by their first output. A matched node pairs
the tensors of its inputs and outputs place by place; so do tensors of one name. That finds the
reference of a tensor behind Q/DQ pairs and casts (`x_dequantized` is `x`), and of one that lost the
ReLU after it (the next node reads `conv` where the reference reads `relu`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnx import ModelProto, NodeProto

from kdcompile.debug.bisect import Probe
from kdcompile.debug.runners import Side
from kdcompile.debug.tensors import FLOATS, computed
from kdcompile.onnx_graph.shapes import element_types

if TYPE_CHECKING:
    from torch.export import ExportedProgram


@dataclass
class Flow:
    """Tensors of the suspect in topological order, and what each is computed from.

    Args:
        inputs: by tensor, the tensors that its node reads, each with the reference's tensor at the
            same place of the matched node, or None.
        references: by tensor, those of the reference that it stands for; what its own node says
            comes first.
    """

    inputs: dict[str, list[tuple[str, str | None]]] = field(default_factory=dict)
    references: dict[str, list[str]] = field(default_factory=dict)

    def pair(self, tensor: str, reference: str) -> None:
        """Note that a tensor stands for one of the reference."""
        known = self.references.setdefault(tensor, [])
        if reference not in known:
            known.append(reference)


def probes_of(flow: Flow) -> list[Probe]:
    """A probe for each pair, in topological order."""
    places: dict[tuple[str, str], int] = {}
    probes: list[Probe] = []
    for tensor in flow.inputs:
        references = flow.references.get(tensor, [])
        if not references:
            continue
        above = _above(flow, tensor, places)
        first = len(probes)
        for reference in references:
            # what else it stands for follows from what its own node says it is
            parents = above if len(probes) == first else (first,)
            places[tensor, reference] = len(probes)
            probes.append(Probe(tensor, reference, parents))
    return probes


def _above(flow: Flow, tensor: str, places: Mapping[tuple[str, str], int]) -> tuple[int, ...]:
    """The nearest probes above a tensor, through tensors that the reference has not."""
    found: list[int] = []
    seen: set[str] = set()
    waiting = list(flow.inputs[tensor])
    while waiting:
        name, expected = waiting.pop(0)
        if expected is not None and (name, expected) in places:
            found.append(places[name, expected])
            continue
        known = flow.references.get(name)
        if known and (name, known[0]) in places:
            found.append(places[name, known[0]])
        elif name in flow.inputs and name not in seen:
            seen.add(name)
            waiting += flow.inputs[name]
    return tuple(sorted(set(found)))


def match_nodes(suspect: ModelProto, reference: ModelProto) -> dict[str, NodeProto]:
    """The reference's node of each node of the suspect, by the first output of the latter."""
    by_name: dict[str, NodeProto] = {}
    for node in reference.graph.node:
        if node.name:
            by_name.setdefault(node.name, node)
    by_output = {name: node for node in reference.graph.node for name in node.output}
    found = {}
    for node in suspect.graph.node:
        match = by_name.get(node.name) if node.name else None
        if match is None or match.op_type != node.op_type:
            match = by_output.get(node.output[0])
        if match is not None and match.op_type == node.op_type:
            found[node.output[0]] = match
    return found


Ends = tuple[Side, Side]  # of the suspect and of the reference, for what their outputs are


def join(flow: Flow, ends: Ends) -> None:
    """Note that the outputs of the suspect stand for those of the reference."""
    suspect, reference = ends
    if suspect.ends:
        pairs = list(zip(suspect.ends, reference.ends, strict=True))
        for mine, other in pairs:
            flow.pair(mine, other)
        flow.inputs[suspect.output] = [*pairs]
    flow.pair(suspect.output, reference.output)


def onnx_probes(suspect: ModelProto, reference: ModelProto, ends: Ends) -> list[Probe]:
    """Probes of an ONNX network against another one."""
    kinds, known = element_types(suspect), element_types(reference)
    matched, producers = match_nodes(suspect, reference), computed(suspect)
    theirs = computed(reference)
    flow = Flow()

    def pair(tensor: str, other: str) -> None:
        both = kinds.get(tensor) in FLOATS and known.get(other) in FLOATS
        if both and tensor in producers and (other in theirs or other in inputs):
            flow.pair(tensor, other)

    inputs = {v.name for v in reference.graph.input}
    mine = {*producers, *(v.name for v in suspect.graph.input)}
    for tensor, node in producers.items():
        match = matched.get(node.output[0])
        expected = _by_place(node.input, [] if match is None else match.input)
        flow.inputs[tensor] = [(name, other) for name, other in expected if name]
        for name, other in _by_place(node.output, [] if match is None else match.output):
            if other is not None and name == tensor:
                pair(name, other)
        pair(tensor, tensor)
    for tensor in list(flow.inputs):
        for name, other in flow.inputs[tensor]:
            # two that both networks have stand for themselves: the node reads them in another order
            if other is not None and not (name in known and other in mine):
                pair(name, other)
    join(flow, ends)
    return probes_of(flow)


def _by_place(mine: Sequence[str], theirs: Sequence[str]) -> Iterable[tuple[str, str | None]]:
    return [(name, theirs[i] or None if i < len(theirs) else None) for i, name in enumerate(mine)]


def program_probes(suspect: ModelProto, program: "ExportedProgram", ends: Ends) -> list[Probe]:
    """Probes of an ONNX network against the program that it was written from.

    torch's exporter calls a tensor as the program's node is called; the network's outputs alone
    have names of their own.
    """
    known = {node.name for node in program.graph.nodes if node.op == "call_function"}
    kinds, outputs = element_types(suspect), {value.name for value in suspect.graph.output}
    flow = Flow()
    for tensor, node in computed(suspect).items():
        flow.inputs[tensor] = [(name, None) for name in node.input if name]
        if kinds.get(tensor) in FLOATS and tensor in known and tensor not in outputs:
            flow.pair(tensor, tensor)
    join(flow, ends)
    return probes_of(flow)


def module_probes(program: "ExportedProgram", once: Sequence[str], ends: Ends) -> list[Probe]:
    """Probes of an exported program against the module that it was traced from.

    A module's output is that of the last node that was traced inside it.

    Args:
        program: the suspect.
        once: paths of modules that run once (`ModuleSide.once`).
        ends: of both.
    """
    flow, last = Flow(), {}
    wanted = set(once)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        flow.inputs[node.name] = [(given.name, None) for given in node.all_input_nodes]
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            if path in wanted:
                last[path] = node.name
    for path, name in last.items():
        flow.pair(name, path)
    join(flow, ends)
    return probes_of(flow)
