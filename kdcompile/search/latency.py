"""What a network's latency will be on a target: a roofline with a launch cost, and its error band.

Each kernel takes the longer of its arithmetic and its memory traffic, plus the launch. Arithmetic
runs at `EFFICIENCY` of the dense peak on large layers and at less on small ones, as if every SM had
`STARTUP_OPS` more to do. A constant efficiency misses by 2x between batch 1 and 8 on one board.

The two constants and the launch cost (the same for every GPU) were fitted to eleven measurements:
MLPerf ResNet-50 on AGX Orin (batch 1, 8), Orin NX and Xavier NX, SSD-ResNet34 on Xavier NX, CSRNet
and its quarter on an H100 in fp32, fp16 and int8. Predicted over measured is 0.69 to 1.36 there, in
sample. The band is a factor of `VALIDATED_BAND` each way near a fixture, else `UNVALIDATED_BAND`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdcompile.errors import KDError
from kdcompile.search.cost import Operation, macs
from kdcompile.targets import Target

EFFICIENCY = 0.75
STARTUP_OPS = 30e6
MEMORY_EFFICIENCY = 0.8
VALIDATED_BAND = 1.5
UNVALIDATED_BAND = 2.5
NEAR = 4.0
"""A fixture speaks for networks of between 1/NEAR and NEAR times its multiply-adds."""

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1}


@dataclass(frozen=True)
class Estimate:
    """A predicted latency in milliseconds.

    `bounds` splits `ms` by what holds it up: `arithmetic`, `memory`, `launch`. `validated` says
    that a measured fixture of the same module, power mode and precision, and of a network of about
    this size, backs the band.
    """

    ms: float
    low_ms: float
    high_ms: float
    validated: bool
    precision: str
    bounds: Mapping[str, float]


def estimate(ops: Sequence[Operation], target: Target, precision: str) -> Estimate:
    """The latency of one inference of `ops` on `target`, compiled at `precision`.

    Raises:
        KDError: the target has no such precision, or no dense peak for it is known.
    """
    peak = _peak(target, precision) * 1e12 * EFFICIENCY
    bandwidth = target.bandwidth_gbs * 1e9 * MEMORY_EFFICIENCY
    bounds = {"arithmetic": 0.0, "memory": 0.0, "launch": 0.0}
    for work, elements in _kernels(ops, target.channel_tile):
        startup = STARTUP_OPS * target.sm_count if work else 0.0
        arithmetic = (work + startup) / peak
        memory = elements * BYTES[precision] / bandwidth
        bound = "arithmetic" if arithmetic >= memory else "memory"
        bounds[bound] += 1e3 * max(arithmetic, memory)
        bounds["launch"] += 1e-3 * target.launch_us
    ms = sum(bounds.values())
    validated = _validated(macs(ops) / 1e9, target, precision)
    band = VALIDATED_BAND if validated else UNVALIDATED_BAND
    return Estimate(ms, ms / band, ms * band, validated, precision, bounds)


def _peak(target: Target, precision: str) -> float:
    """Dense TFLOP/s; TensorRT multiplies fp32 in TF32 where the GPU has it, unless told not to."""
    peaks = target.peak_tflops
    if precision not in target.precisions or precision not in peaks or precision not in BYTES:
        raise KDError(
            "target-precision",
            f"{target.name} has no {precision} with a known dense peak",
            where="[quantize] precision",
            fix="one of " + ", ".join(p for p in target.precisions if p in peaks and p in BYTES),
        )
    return peaks.get("tf32", peaks["fp32"]) if precision == "fp32" else peaks[precision]


def _kernels(ops: Sequence[Operation], tile: int) -> list[tuple[float, int]]:
    """(arithmetic operations, elements moved) of each kernel; a fused op adds to the one before."""
    kernels: list[tuple[float, int]] = []
    for op in ops:
        if op.fused and kernels:
            work, moved = kernels[-1]
            kernels[-1] = (work, moved + op.in_elements)
        else:
            moved = op.in_elements + op.out_elements + op.weight_elements
            kernels.append((_aligned_work(op, tile), moved))
    return kernels


def _aligned_work(op: Operation, tile: int) -> float:
    """Operations with the channels of each group rounded up to whole tiles: padding costs time."""
    work = 2.0 * op.macs
    if work:
        for channels in (op.in_channels // op.groups, op.out_channels // op.groups):
            work *= -(-channels // tile) * tile / channels
    return work


def _validated(gmac: float, target: Target, precision: str) -> bool:
    sizes = [
        fixture.gmac
        for fixture in target.fixtures
        if fixture.mode == target.power_mode and fixture.precision == precision
    ]
    return bool(sizes) and min(sizes) / NEAR <= gmac <= max(sizes) * NEAR
