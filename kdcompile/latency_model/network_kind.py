"""The kind of a network, from its kernels: a fixture speaks for its own kind alone."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from kdcompile.latency_model.workload import Kernel

NetworkKind = Literal["convolutional", "depthwise", "transformer", "detector", "recurrent"]

PLACES = 4  # where a detector splits, joins, resizes or reorders maps, at the least
PRODUCTS = 0.5  # of a transformer's multiply-adds are in matrix products, at the least
DEPTHWISE = 0.15  # of a depthwise network's convolutions, at the least; a third of MobileNet's
_PLACES = ("copy", "resize", "shuffle", "gather", "sort")
_CONVOLUTIONS = ("conv", "depthwise", "grouped", "transposed", "dilated")


def network_kind(kernels: Sequence[Kernel]) -> NetworkKind:
    """The first that fits: recurrent, transformer, detector, depthwise, else convolutional.

    What else joins maps of several scales, as a segmentation network or a DenseNet does, spends its
    time on the same kernels and counts as a detector.
    """
    counts: Counter[str] = Counter(kernel.kind for kernel in kernels)
    macs: Counter[str] = Counter()
    for kernel in kernels:
        macs[kernel.kind] += kernel.macs
    if counts["recurrent"]:
        return "recurrent"
    attends = counts["attention"] + counts["softmax"] > 0
    if attends and macs["gemm"] + macs["attention"] >= PRODUCTS * sum(macs.values()):
        return "transformer"
    if sum(counts[kind] for kind in _PLACES) >= PLACES:
        return "detector"
    convolutions = sum(counts[kind] for kind in _CONVOLUTIONS)
    if counts["depthwise"] >= max(1, DEPTHWISE * convolutions):
        return "depthwise"
    return "convolutional"
