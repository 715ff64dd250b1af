"""Attention as one operator (opset 23), by torch's own."""

from typing import Any

from torch import Tensor
from torch.nn import functional

from kdcompile.models.onnx_import.values import Call, Node, operator


@operator("Attention")
def attention(node: Node) -> Call:
    """Of queries, keys and values, with heads on an axis of their own or in the last."""
    if any(node.has(i) for i in (4, 5, 6)) or len([n for n in node.proto.output if n]) > 1:
        raise node.refused("it has past keys, or gives more than its values")
    if node.get("softcap", 0.0) or node.get("qk_matmul_output_mode", 0):
        raise node.refused("it caps its logits or gives them")
    if node.get("kv_num_heads", 0) != node.get("q_num_heads", 0):
        raise node.refused("queries and keys have other numbers of heads")
    mask: Any = node.value(3) if node.has(3) else None
    queries = [node.value(i) for i in range(3)]
    options = {"is_causal": bool(node.get("is_causal", 0)), "scale": node.get("scale", None)}
    if len(queries[0].shape) == 4:
        return Call(functional.scaled_dot_product_attention, [*queries, mask], options)
    return Call(by_heads, [*queries, mask, int(node.attributes["q_num_heads"])], options)


def by_heads(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, heads: int, **options: Any
) -> Tensor:
    """[N, L, heads x C] to the same."""
    parts = [one.reshape(*one.shape[:2], heads, -1).transpose(1, 2) for one in (query, key, value)]
    query, key, value = parts
    made = functional.scaled_dot_product_attention(query, key, value, mask, **options)
    return made.transpose(1, 2).flatten(2)
