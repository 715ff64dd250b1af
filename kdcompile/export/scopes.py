"""Keep the module that each node is of, so that a compiler's refusal can name it."""

from onnx import ModelProto

KEY = "pkg.torch.onnx.name_scopes"  # torch's exporter: the modules around the node, innermost last


def restore_scopes(model: ModelProto, exported: ModelProto) -> None:
    """Put back, in place, what ONNX's version converter and the simplifier drop.

    A node is known again by the name of its first output, which both keep.

    Args:
        model: what they made.
        exported: the exporter's own model.
    """
    scopes = {
        node.output[0]: entry.value
        for node in exported.graph.node
        for entry in node.metadata_props
        if entry.key == KEY
    }
    for node in model.graph.node:
        known = any(entry.key == KEY for entry in node.metadata_props)
        if not known and node.output[0] in scopes:
            node.metadata_props.add(key=KEY, value=scopes[node.output[0]])
