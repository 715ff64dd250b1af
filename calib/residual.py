"""Residual branches that get a Q/DQ pair of their own, so that the sum is fused in int8.

TensorRT takes a sum into the convolution that makes one of its terms, and gives out integers, where
the other term comes through a DequantizeLinear; with a float term the sum's Q is a kernel apart
(NVIDIA's ModelOpt places pairs so). The convolution's own term gets none: it would part the two.
"""

from collections.abc import Collection

from onnx import ModelProto

from kdcompile.calib.precision_regions import Junctions


def residual_branches(
    model: ModelProto, quantised: Collection[str], ranges: Collection[str] | None = None
) -> dict[str, str]:
    """For each sum that can be fused in int8, by its output, the term that takes a pair.

    Only sums right after a quantised convolution: those of a transformer, after its products, cost
    it its accuracy. Of two convolutions the later one adds, as TensorRT has it.

    Args:
        model: float32.
        quantised: names of the layers in int8.
        ranges: tensors whose range is known; a term that is not among them stays float. All are
            where it is None.
    """
    junctions = Junctions(model)
    inside = junctions.float32_nodes(quantised)
    adding = [
        layer.node.output[0]
        for layer in junctions.quantisable
        if layer.node.op_type == "Conv" and layer.name in quantised
    ]
    alone = {name for name, users in junctions.users.items() if len(users) == 1}
    found = {}
    for node in junctions.nodes:
        terms = set(junctions.data(node))
        if node.op_type != "Add" or len(terms) != 2 or node.output[0] not in inside:
            continue
        makers = [name for name in adding if name in terms & alone]
        other = terms - set(makers[-1:])
        if makers and (ranges is None or other <= set(ranges)):
            found[node.output[0]] = other.pop()
    return found
