"""Priors of the efficiencies: median and log standard deviation before any measurement.

From what is known of the hardware; `docs/latency-model.md` says which were settled while looking at
the fixtures.
"""

from kdcompile.latency_model.roofline import (
    ARITHMETIC_KINDS,
    GENERATIONS,
    TENSOR_PRECISIONS,
    TURING,
)

_KINDS = {
    "dilated": (0.95, 0.15), "grouped": (0.7, 0.4), "transposed": (0.7, 0.4), "gemm": (0.9, 0.2),
    "attention": (0.5, 0.4), "depthwise": (0.3, 0.5),
    "pool": (0.8, 0.3), "resize": (0.7, 0.4), "pointwise": (1.0, 0.15), "reduction": (0.6, 0.4),
    "reformat": (0.7, 0.3), "other": (0.3, 0.7),
    # from a profile of an Orin's kernels (docs/latency-model.md): a part of a map is copied at 42
    # to 54 GB/s and a transpose at 24 to 38 where pointwise kernels have 82; a softmax over an axis
    # that is not the last takes 0.34 ms for 2.2 MB
    "copy": (0.55, 0.25), "shuffle": (0.35, 0.35), "across": (0.032, 0.4),
    # no profile: a row is read twice or kept in registers; indices scatter the reads; TopK and
    # suppression take many passes
    "softmax": (0.5, 0.4), "norm": (0.5, 0.4), "gather": (0.4, 0.5), "sort": (0.03, 0.8),
}  # fmt: skip
_GPU = {
    "arithmetic": (0.9, 0.1),  # of the dense peak, in the main loop of a tile
    "operands": (64.0, 0.3),  # bytes per clock that an SM loads, the width of its port to L2
    # cycles: load, barrier and multiplication; before 8.0 copies pass through registers
    **{f"step.{g}": (600.0 if g in ("7", TURING) else 300.0, 0.5) for g in GENERATIONS},
    "fill": (2500.0, 0.5),  # cycles: first loads, last stores, the grid's start and end
    "launch": (0.5, 0.4),  # of the target's launch_us, in a CUDA graph, on a Jetson
    # the same on a card, which reads its launches from a memory of its own: between the 0.5 us of
    # a V100 (NVIDIA's introduction of CUDA graphs, recalled: a kernel of 2.9 us takes 3.4 in one),
    # whose kernel has three arguments, and the 2.9 us of a Jetson
    "launch.card": (0.24, 0.5),
    # us, without one: between two kernels, since each launch is fetched from the host's memory;
    # and of the processor to enqueue one, of which TensorRT's own bookkeeping is more than half
    "stream": (1.0, 0.7), "host": (6.0, 0.5),
    "dram": (0.75, 0.15),  # of the bandwidth
    "exposed": (0.2, 0.5),  # of the shorter of arithmetic and memory: first loads, last stores
    "l2": (32.0, 0.4),  # bytes per clock and SM
    "depthwise.memory": (0.7, 0.3),  # the rims of its tiles are read again
    # on Hopper Ampere's instructions reach 0.62 of the peak; TensorRT has kernels with either
    **{f"generation.{g}": (0.75, 0.15) if g in ("9", "10") else (1.0, 0.1) for g in GENERATIONS},
    **{f"{p}.{g}": (1.0, 0.1) for g in GENERATIONS for p in TENSOR_PRECISIONS},
    **_KINDS,
}  # fmt: skip
_CPU = {
    "arithmetic": (0.75, 0.4),
    # instructions for it are there or not
    **{f"int8.{kind}": (0.7, 0.6) for kind in ("conv", *ARITHMETIC_KINDS)},
    # of the cache's bandwidth, at which an int8 convolution's windows are copied into rows: settled
    # while looking at the students of benchmarks/ranking_cpu.json
    "int8.windows": (0.1, 0.7),
    "launch": (1.0, 0.7),
    "dram": (0.75, 0.3),
    "exposed": (0.2, 0.5),
    "l2": (3.0, 0.5),  # of the DRAM's bandwidth
    **_KINDS,
    "depthwise": (0.3, 0.7),  # of the same peak: there the vector units do all
}
PRIORS = {"gpu": _GPU, "cpu": _CPU}
