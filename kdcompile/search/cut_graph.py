"""A teacher's ONNX graph without some of its modules."""

from collections.abc import Container, Sequence

from onnx import GraphProto, helper

from kdcompile.errors import KDError
from kdcompile.models.dropped import is_gone
from kdcompile.search.tensor_channels import scopes


def cut(graph: GraphProto, part: Sequence[str], computed: Container[str]) -> None:
    """Put an identity in the place of the nodes of some modules.

    Args:
        graph: changed in place.
        part: the modules that go together.
        computed: the tensors that depend on the input.

    Raises:
        KDError: `template-dropped`, not one tensor goes in and one comes out.
    """
    inside = [node for node in graph.node if any(is_gone(s, part) for s in scopes(node))]
    outside = [node for node in graph.node if not any(node is other for other in inside)]
    made = {name for node in inside for name in node.output}
    read = {name for node in inside for name in node.input if name in computed} - made
    left = {name for node in outside for name in node.input} | {v.name for v in graph.output}
    if len(read) != 1 or len(made & left) != 1:
        raise KDError(
            "template-dropped",
            f"{len(read)} tensors go in and {len(made & left)} come out, so that nothing can "
            "stand for it",
            where=part[0],
            fix="search again with this teacher: kdcompile search",
        )
    bypass = helper.make_node("Identity", [*read], [*(made & left)], name=f"without_{part[0]}")
    nodes = list(graph.node)
    first = next(place for place, node in enumerate(nodes) if node is inside[0])
    kept = [*outside[:first], bypass, *outside[first:]]
    del graph.node[:]
    graph.node.extend(kept)
