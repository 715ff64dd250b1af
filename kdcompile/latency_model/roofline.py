"""The equations of the latency model: a time for each kernel, given the efficiencies.

    network = max(sum of its kernels, host x launches: only where no CUDA graph replays it)
    kernel = launches x (launch + fill / clock + stream: only where no CUDA graph replays it)
             + max(arithmetic, memory) + exposed min(arithmetic, memory)
    arithmetic = min over tiles (max(operations of an SM / rate,
                                     operands / (operands x clock), steps of K x step / clock)
                                 + bytes of split K / L2 bandwidth)
                 + bytes of windows / (L2 bandwidth x int8.windows): int8 on a CPU
    rate = peak / SMs x arithmetic x generation x precision x kind
    memory = (DRAM bytes / (bandwidth x dram) + L2 bytes / L2 bandwidth) / kind
    L2 bandwidth = max(l2 x SMs x clock, bandwidth x dram)

What a kernel lays out of a network (operations, bytes from DRAM and from L2) does not depend on
the efficiencies, so a fit computes it once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.latency_model.workload import (
    VECTOR_KINDS,
    Array,
    Kernel,
    Work,
    kernel_work,
    stacked,
    traffic,
)
from kdcompile.targets import Target

L2_SHARE = 0.6
"""Of the L2, what outlives the kernel that wrote it; the rest is weights and its own traffic."""
ARITHMETIC_KINDS = ("dilated", "grouped", "transposed", "gemm", "attention", "depthwise")
"""Kinds whose arithmetic has an efficiency of its own, over that of `conv`."""
MEMORY_KINDS = (
    "pool", "resize", "pointwise", "reduction", "softmax", "across", "norm", "copy", "shuffle",
    "gather", "sort", "reformat", "other",
)  # fmt: skip
"""Kinds that only move memory, over the DRAM's efficiency."""
TURING = "7.5"
GENERATIONS = ("7", TURING, "8", "9", "10")
"""Major compute capability; 7 stands for it and earlier, 10 for it and later. Turing is apart from
Volta, all fixtures of which are of a Jetson with an L2 of 512 KB."""
TENSOR_PRECISIONS = ("fp32", "fp16", "int8", "fp8")


class Layout(NamedTuple):
    """What is known of a network's kernels on a target before any efficiency; first axis kernels.

    `rate`: peak operations per second and SM. `arithmetic` and `memory`: the names of the
    efficiencies that scale each kernel, besides those of all. `launches`: of each kernel, one a
    step. `windows`: bytes that an int8 convolution of a CPU copies first. `graph`: one CUDA graph
    replays all. `launch`: the efficiency of a launch.
    """

    work: Work
    launches: Array
    rate: Array
    dram: Array
    l2: Array
    arithmetic: tuple[tuple[str, ...], ...]
    memory: tuple[str, ...]
    windows: Array
    launch_us: float
    mhz: float
    sms: int
    bandwidth: float
    generation: str
    graph: bool
    launch: str


@dataclass(frozen=True)
class Times:
    """Seconds of each kernel; `overhead` is the same for each launch: launch, fill and drain.

    `host` is what the processor needs to enqueue one; 0 where a CUDA graph replays them.
    """

    launches: Array
    arithmetic: Array
    memory: Array
    overhead: float
    exposed: float
    host: float

    @property
    def busy(self) -> Array:
        """Of each kernel without its overhead."""
        longer = np.maximum(self.arithmetic, self.memory)
        return longer + self.exposed * np.minimum(self.arithmetic, self.memory)

    @property
    def total(self) -> float:
        """Of the network; the GPU and the processor that enqueues its kernels work side by side."""
        count = float(self.launches.sum())
        return max(float(self.busy.sum()) + self.overhead * count, self.host * count)


def generation(target: Target) -> str:
    """The compute capability of `GENERATIONS` that efficiencies are kept by; `cpu` for a CPU."""
    if target.compute_capability is None:
        return "cpu"
    if target.compute_capability == TURING:
        return TURING
    major = int(target.compute_capability.split(".")[0])
    return str(min(max(major, int(GENERATIONS[0])), int(GENERATIONS[-1])))


def peak(target: Target, precision: str) -> float:
    """Dense operations per second; those of fp32 are TF32's where the engine may use it.

    Raises:
        KDError: `target-precision`, the target has no such precision, or no known peak for it.
    """
    peaks = target.peak_tflops
    if precision not in target.precisions or precision not in peaks:
        raise KDError(
            "target-precision",
            f"{target.name} has no {precision} with a known dense peak",
            where="[quantize] precision",
            fix="one of " + ", ".join(p for p in target.precisions if p in peaks),
        )
    return peaks[target.fp32_in if precision == "fp32" else precision] * 1e12


def lay_out(kernels: Sequence[Kernel], target: Target, graph: bool = True) -> Layout:
    """The layout of one inference.

    Args:
        kernels: of `kernels_of`.
        target: in its power mode.
        graph: a CUDA graph replays them; else they are enqueued one by one, back to back.

    Raises:
        KDError: `target-precision`, a kernel multiplies in what the target cannot.
    """
    cpu, sms = target.kind == "cpu", target.sm_count
    rates: dict[str, float] = {}

    def rate(kernel: Kernel) -> float:
        precision = kernel.input_precision if kernel.macs else "fp32"
        if kernel.kind in VECTOR_KINDS and not cpu:  # no tensor cores: the vector units' float32
            return target.peak_tflops["fp32"] * 1e12 / sms
        if precision not in rates:
            rates[precision] = peak(target, precision) / sms
        return rates[precision]

    dram, l2 = traffic(kernels, target.l2_mb * 1e6 * L2_SHARE, vectors=not cpu)
    return Layout(
        work=stacked([kernel_work(k, sms, target.channel_tile, cpu) for k in kernels]),
        launches=np.array([float(k.steps) for k in kernels]),
        rate=np.array([rate(k) for k in kernels]),
        dram=dram,
        l2=l2,
        arithmetic=tuple(_arithmetic_names(k, generation(target)) for k in kernels),
        memory=tuple(_memory_name(k, cpu) for k in kernels),
        windows=np.array([_window_bytes(k) if cpu else 0.0 for k in kernels]),
        launch_us=target.launch_us,
        mhz=target.gpu_mhz or 0.0,
        sms=sms,
        bandwidth=target.bandwidth_gbs * 1e9,
        generation=generation(target),
        graph=graph or cpu,
        launch="launch.card" if target.kind == "workstation" else "launch",
    )


def _window_bytes(kernel: Kernel) -> float:
    """Of the matrix that ONNX Runtime's int8 convolution makes of its image (im2col).

    A 1x1 window at stride 1 is its own row and is multiplied where it lies.
    """
    moves = (*kernel.kernel_size, *kernel.stride)
    if kernel.input_precision != "int8" or not kernel.macs or max(moves, default=1) == 1:
        return 0.0
    return kernel.macs * kernel.groups / kernel.out_channels


def _memory_name(kernel: Kernel, cpu: bool) -> str:
    """The efficiency of its bandwidth, if it has one; a CPU's depthwise kernels have none."""
    if kernel.kind in VECTOR_KINDS and not cpu:
        return f"{kernel.kind}.memory"
    return kernel.kind if kernel.kind in MEMORY_KINDS else ""


def _arithmetic_names(kernel: Kernel, major: str) -> tuple[str, ...]:
    if not kernel.macs:
        return ()
    name = {"recurrent": "gemm"}.get(kernel.kind, kernel.kind)  # none was measured
    kind = (name,) if name in ARITHMETIC_KINDS else ()
    precision = "fp16" if kernel.input_precision == "bf16" else kernel.input_precision
    if major == "cpu":
        own = f"int8.{name}"  # ONNX Runtime has other kernels for it, not all as good
        return ("arithmetic", *kind, *((own,) if precision == "int8" else ()))
    if kernel.kind in VECTOR_KINDS:
        return kind
    return "arithmetic", f"generation.{major}", f"{precision}.{major}", *kind


def times(layout: Layout, values: Mapping[str, float]) -> Times:
    """Seconds of each kernel with these efficiencies."""
    bandwidth = layout.bandwidth * values["dram"]
    if layout.generation == "cpu":  # no clock is known: the cache goes by the memory
        fast = bandwidth * max(values["l2"], 1.0)
    else:
        fast = max(values["l2"] * layout.sms * layout.mhz * 1e6, bandwidth)
    shares: dict[tuple[str, ...], float] = {}
    for names in set(layout.arithmetic):
        shares[names] = math.prod(values[name] for name in names)
    rate = layout.rate * np.array([shares[names] for names in layout.arithmetic])
    busy = layout.work.operations / rate
    if layout.mhz:
        steps = layout.work.steps * values[f"step.{layout.generation}"]
        cycles = np.maximum(layout.work.operands / values["operands"], steps)
        busy = np.maximum(busy, cycles / (layout.mhz * 1e6))
    arithmetic = (busy + layout.work.partial / fast).min(axis=0)
    if layout.windows.any():
        arithmetic = arithmetic + layout.windows / (fast * values["int8.windows"])
    share = np.array([values[name] if name else 1.0 for name in layout.memory])
    memory = (layout.dram / bandwidth + layout.l2 / fast) / share
    overhead = 1e-6 * values[layout.launch] * layout.launch_us
    if layout.mhz:
        overhead += values["fill"] / (layout.mhz * 1e6)
    if layout.graph:
        return Times(layout.launches, arithmetic, memory, overhead, values["exposed"], host=0.0)
    overhead += 1e-6 * values["stream"]
    host = 1e-6 * values["host"]
    return Times(layout.launches, arithmetic, memory, overhead, values["exposed"], host)
