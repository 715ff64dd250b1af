"""Predict a network's latency on a target: median, 90 % interval, and the share of each kernel.

The equations are in `roofline`, the efficiencies and their uncertainty in `parameters`, what is
measured in `targets/fixtures.toml`. The prediction is log-normal: its variance is that of the
efficiencies carried through the equations, plus the model's own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from kdcompile.latency_model.network_kind import network_kind
from kdcompile.latency_model.parameters import (
    Efficiencies,
    efficiencies_of,
    log_deviation,
    ratio_deviation,
)
from kdcompile.latency_model.roofline import Times, lay_out, peak, times
from kdcompile.latency_model.workload import Kernel
from kdcompile.targets import Target

NEAR = 4.0
"""A fixture speaks for networks of between 1/NEAR and NEAR times its multiply-adds."""
NINETY = 1.645  # standard deviations each way that hold 90 %

Bound = Literal["arithmetic", "memory", "launch"]


@dataclass(frozen=True)
class Part:
    """What one kernel adds: `ms` of the median, and the largest share of it.

    `known` is False where its operator has no efficiency of its own: it is then priced by its
    memory traffic, at a low and uncertain bandwidth.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    ms: float
    bound: Bound
    known: bool


@dataclass(frozen=True)
class Estimate:
    """A predicted latency in milliseconds: median and 90 % interval.

    `bounds` splits `ms` by what holds it up: `arithmetic`, `memory`, `launch`. `validated` says
    that a measured fixture of the same module, power mode and precision, and of a network of its
    kind and about its size, backs it; `calibrated` that its efficiencies were measured on the
    device. `notes` say what a reader must know.
    """

    ms: float
    low_ms: float
    high_ms: float
    validated: bool
    precision: str
    bounds: Mapping[str, float]
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    calibrated: bool = False
    network_kind: str = ""


def estimate(
    kernels: Sequence[Kernel],
    target: Target,
    precision: str,
    efficiencies: Efficiencies | None = None,
) -> Estimate:
    """The latency of one inference, replayed as a CUDA graph.

    Args:
        kernels: of `kernels_of`, in the types of the engine.
        target: in its power mode.
        precision: of the engine; each kernel runs at its own.
        efficiencies: those of the target where not given.

    Raises:
        KDError: `target-precision`, the target does not multiply in that precision or a kernel's.
    """
    peak(target, precision)
    efficiencies = efficiencies or efficiencies_of(target)
    layout = lay_out(kernels, target)
    found = times(layout, efficiencies.values)
    ms = 1e3 * found.total
    factor = math.exp(NINETY * log_deviation(layout, efficiencies))
    gmac = sum(kernel.macs for kernel in kernels) / 1e9
    kind = network_kind(kernels)
    without_tf32 = precision == "fp32" and target.fp32_in != replace(target, tf32=True).fp32_in
    sizes = _sizes().get((target.name, target.power_mode, precision, kind), [])
    sizes = [] if without_tf32 else sizes  # the engines of the fixtures multiplied in TF32
    validated = any(size / NEAR <= gmac <= size * NEAR for size in sizes)
    parts = _parts(kernels, found)
    named = f"{precision}{' without TF32' if without_tf32 else ''} of a {kind} network"
    notes = _notes(parts, target, "" if validated else named)
    return Estimate(
        ms, ms / factor, ms * factor, validated, precision, _bounds(found), parts, notes,
        target.calibration is not None, kind,
    )  # fmt: skip


def kernel_ms(
    kernels: Sequence[Kernel],
    target: Target,
    precision: str,
    efficiencies: Efficiencies | None = None,
) -> float:
    """The median of `estimate` alone, in milliseconds.

    Give the efficiencies when many networks are priced, so that they are looked up once.

    Raises:
        KDError: as `estimate`.
    """
    peak(target, precision)
    values = (efficiencies or efficiencies_of(target)).values
    return 1e3 * times(lay_out(kernels, target), values).total


def ratio_factor(one: Sequence[Kernel], other: Sequence[Kernel], target: Target) -> float:
    """How far off the ratio of two networks' latencies may be, each way, at 90 %.

    Teacher and student share most of the model's errors about a device, so that their ratio is
    known better than either latency.

    Raises:
        KDError: as `estimate`.
    """
    layouts = lay_out(one, target), lay_out(other, target)
    return math.exp(NINETY * ratio_deviation(*layouts, efficiencies_of(target)))


def _bounds(found: Times) -> dict[str, float]:
    """Milliseconds by bound; the shorter of arithmetic and memory counts as far as it shows."""
    longer = found.arithmetic >= found.memory
    shown = longer + found.exposed * ~longer
    hidden = ~longer + found.exposed * longer
    return {
        "arithmetic": 1e3 * float((found.arithmetic * shown).sum()),
        "memory": 1e3 * float((found.memory * hidden).sum()),
        "launch": 1e3 * found.overhead * float(found.launches.sum()),
    }


def _parts(kernels: Sequence[Kernel], found: Times) -> tuple[Part, ...]:
    overhead = found.overhead * found.launches
    rows = zip(kernels, found.arithmetic, found.memory, found.busy, overhead, strict=True)
    parts = []
    for kernel, arithmetic, memory, busy, launch in rows:
        shares: dict[Bound, float] = {
            "arithmetic": arithmetic, "memory": memory, "launch": launch,
        }  # fmt: skip
        bound = max(shares, key=lambda name: shares[name])
        ms = 1e3 * float(busy + launch)
        known = kernel.kind != "other"
        parts.append(Part(kernel.name, kernel.kind, kernel.nodes, ms, bound, known))
    return tuple(parts)


def _notes(parts: Sequence[Part], target: Target, unvalidated: str) -> tuple[str, ...]:
    """What a reader must know; `unvalidated` says of what no latency was measured."""
    notes = []
    if unvalidated:
        notes.append(
            f"unvalidated: no measured latency of {target.name} in mode {target.power_mode} at "
            f"{unvalidated} of about this size"
        )
    if target.calibration is not None:
        notes.append(f"efficiencies from a calibration of {target.name} on the device")
    recurrent = sum(part.kind == "recurrent" for part in parts)
    if recurrent:
        notes.append(
            f"recurrent layers ({recurrent}) at one launch a step: no such network was measured"
        )
    unknown = [part.name for part in parts if not part.known]
    if unknown:
        listed = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        notes.append(f"{len(unknown)} unknown operators, counted as memory-bound: {listed}")
    return tuple(notes)


@cache
def _sizes() -> dict[tuple[str, str, str, str], list[float]]:
    """GMAC of the usable fixtures by module, mode, precision and kind of network."""
    from kdcompile.latency_model.reference_kernels import reference_gmac, reference_kernels
    from kdcompile.targets.fixtures import load_fixtures

    sizes: dict[tuple[str, str, str, str], list[float]] = {}
    for fixture in load_fixtures():
        if fixture.usable and not fixture.secondary:
            gmac = fixture.gmac or reference_gmac(fixture.network, fixture.shape)
            kernels = reference_kernels(fixture.network, fixture.shape, fixture.precision)
            key = fixture.target, fixture.mode, fixture.precision, network_kind(kernels)
            sizes.setdefault(key, []).append(gmac)
    return sizes


def validated_kinds(target: Target) -> dict[str, tuple[str, ...]]:
    """Precision to the kinds of network that a target's mode has a fixture of."""
    kinds: dict[str, tuple[str, ...]] = dict.fromkeys(target.precisions, ())
    for name, mode, precision, kind in _sizes():
        if (name, mode) == (target.name, target.power_mode):
            kinds[precision] = (*kinds[precision], kind)
    return kinds
