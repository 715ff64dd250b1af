"""A teacher's ONNX graph without some of its modules."""

from collections.abc import Container, Sequence

from onnx import GraphProto, NodeProto, helper

from kdcompile.core.errors import KDError
from kdcompile.models.dropped import is_gone
from kdcompile.search.spaces.tensor_channels import scopes


def cut(graph: GraphProto, part: Sequence[str], computed: Container[str]) -> None:
    """Put an identity in the place of the nodes of some modules.

    Args:
        graph: changed in place.
        part: the modules that go together.
        computed: the tensors that depend on the input.

    Raises:
        KDError: `template-dropped`, not one tensor goes in and one comes out.
    """
    inside = _inside(graph, part, computed)
    outside = [node for node in graph.node if not any(node is other for other in inside)]
    made = {name for node in inside for name in node.output}
    read = {name for node in inside for name in node.input if name in computed} - made
    left = {name for node in outside for name in node.input} | {v.name for v in graph.output}
    if len(read) != 1 or len(made & left) != 1:
        raise KDError(
            "template-dropped",
            f"it cannot be replaced by the identity in the ONNX file: {len(read)} tensors go in "
            f"and {len(made & left)} come out",
            where=part[0],
            fix='search with search.space = "staged"; for a given student, use weights that '
            "kdcompile distill wrote for this teacher",
        )
    bypass = helper.make_node("Identity", [*read], [*(made & left)], name=f"without_{part[0]}")
    nodes = list(graph.node)
    first = next(place for place, node in enumerate(nodes) if node is inside[0])
    kept = [*outside[:first], bypass, *outside[first:]]
    del graph.node[:]
    graph.node.extend(kept)


def _inside(graph: GraphProto, part: Sequence[str], computed: Container[str]) -> list[NodeProto]:
    """The nodes of some modules, and those that the simplifier put between them."""
    nodes = list(graph.node)
    readers: dict[str, set[int]] = {}
    for place, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, set()).add(place)
    own = {n for n, node in enumerate(nodes) if any(is_gone(s, part) for s in scopes(node))}
    found, made = set(own), {name for n in own for name in nodes[n].output}
    for place, node in enumerate(nodes):  # a node that is of no module has lost where it is from
        read = {name for name in node.input if name in computed}
        if not scopes(node) and read and read <= made:
            found.add(place)
            made |= set(node.output)
    for place in sorted(found - own, reverse=True):
        if not set().union(*(readers.get(name, {-1}) for name in nodes[place].output)) <= found:
            found.remove(place)
    return [nodes[place] for place in sorted(found)]
