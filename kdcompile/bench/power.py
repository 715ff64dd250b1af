"""Energy of an inference and peak memory of a network, from what its place tells of them.

The worker gives readings; what they amount to is worked out here. Where nothing tells, the result
is `Absent` with the reason, never a number.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends import engine
from kdcompile.backends.via import Place
from kdcompile.bench.watch import grown
from kdcompile.errors import KDError

NETWORK = "measured"
SECONDS, IDLE_S = 5.0, 2.0
# what a module draws in all; its other rails are parts of it
TOTALS = ("VDD_IN", "POM_5V_IN")
PARTS, MIN_PARTS = 10, 3  # of the time, whose means give the interval
MB_OF_MIB = 1.048576
log = logging.getLogger("kdcompile")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Absent:
    """Nothing tells; `reason` says what was looked for."""

    reason: str


@dataclass(frozen=True)
class Energy:
    """Energy of one inference, where inferences follow each other without a pause.

    Args:
        mj: in all, mJ; what the device draws while idle is in it.
        low: lower end of its 95 % interval.
        high: upper end.
        above_idle_mj: of it, what is above the power of the idle device.
        watts: mean power during the inferences.
        idle_watts: before them, with the network loaded.
        rails: mean watts by rail during the inferences.
        judged: the rails that are summed: the whole module's where there is one, else all.
        source: INA3221, NVML or tegrastats.
        samples: readings during the inferences.
        hz: of these a second.
        inferences: how many there were.
        mode: of the worker's `time`.
    """

    mj: float
    low: float
    high: float
    above_idle_mj: float
    watts: float
    idle_watts: float
    rails: Mapping[str, float]
    judged: tuple[str, ...]
    source: str
    samples: int
    hz: float
    inferences: int
    mode: str


@dataclass(frozen=True)
class Memory:
    """Peak memory of a network in one process.

    Args:
        mb: in units of 10^6 bytes.
        what: which memory, in words.
        host_mb: by how much the process itself grew at most; None where nothing tells.
    """

    mb: float
    what: str
    host_mb: float | None


@dataclass(frozen=True)
class Resources:
    """What a network takes of its device."""

    energy: Energy | Absent
    memory: Memory | Absent


def measure(
    open_: Callable[[], AbstractContextManager[Place]],
    load: Callable[[Place, str], object],
    arrays: Mapping[str, NDArray[Any]],
    *,
    seconds: float = SECONDS,
    idle_s: float = IDLE_S,
) -> Resources:
    """Energy and memory of a network, alone in a process of its own.

    Args:
        open_: the place, with a fresh worker.
        load: loads the network there under a name.
        arrays: the inputs by name.
        seconds: of inferences under which power is read.
        idle_s: before them, of an idle device.

    Raises:
        KDError: what opening the place, loading and running raise.
    """
    with open_() as place:
        there = place.inputs(arrays)
        before = place.call("memory", restart=True)
        load(place, NETWORK)
        mode = _first_mode(place, there)
        memory = memory_of(before, place.call("memory"))
        log.info("reading the power at %s for %.0f s", place.label, seconds)
        answer = place.call(
            "power", inputs=there, name=NETWORK, mode=mode, seconds=seconds, idle_s=idle_s
        )
    return Resources(energy_of(answer), memory)


def _first_mode(place: Place, inputs: str) -> str:
    """The leanest mode in which the network runs, once it has run in it."""
    modes = engine.modes(place)
    for mode in modes:
        try:
            place.call("time", inputs=inputs, iterations=3, warmup=1, name=NETWORK, mode=mode)
        except KDError as error:
            if error.code != "graph-refused" or mode == modes[-1]:
                raise
        else:
            return mode
    raise AssertionError("a worker has a mode")


def energy_of(answer: Mapping[str, Any]) -> Energy | Absent:
    """What the readings of the worker's `power` amount to.

    The interval is Student's t over the means of ten parts of the time: neighbouring readings are
    alike, the parts less so.

    Args:
        answer: of the worker.
    """
    if "unavailable" in answer:
        return Absent(str(answer["unavailable"]))
    busy, idle = answer["busy"], answer["idle"]
    names = sorted({rail for _, values in busy["samples"] for rail in values})
    steps = {name: _steps(busy["samples"], name, answer["unit"]) for name in names}
    judged = tuple(name for name in TOTALS if name in names)[:1] or tuple(names)
    total = _sum_of(busy["samples"], judged, answer["unit"])
    rest = _sum_of(idle["samples"], judged, answer["unit"])
    parts = min(PARTS, len(total[0]) // 2)
    if parts < MIN_PARTS or not len(rest[0]):
        read = f"{len(busy['samples'])} readings of {answer['source']} while it ran"
        return Absent(f"too few to judge from: {read}, {len(idle['samples'])} while idle")
    watts, idle_watts = _mean(total), _mean(rest)
    half = _half_width(total, parts)
    each = 1000 * busy["seconds"] / busy["inferences"]  # mJ of one inference for each watt
    return Energy(
        mj=watts * each,
        low=(watts - half) * each,
        high=(watts + half) * each,
        above_idle_mj=(watts - idle_watts) * each,
        watts=watts,
        idle_watts=idle_watts,
        rails={name: _mean(found) for name, found in steps.items() if len(found[0])},
        judged=judged,
        source=str(answer["source"]),
        samples=len(busy["samples"]),
        hz=len(busy["samples"]) / busy["seconds"],
        inferences=int(busy["inferences"]),
        mode=str(answer["mode"]),
    )


def _sum_of(
    samples: Sequence[tuple[float, Mapping[str, float]]], rails: Sequence[str], unit: str
) -> tuple[Floats, Floats]:
    """The steps of the sum of rails, over the readings that have all of them."""
    whole = [(t, v) for t, v in samples if all(rail in v for rail in rails)]
    return _steps([(t, {"sum": sum(v[rail] for rail in rails)}) for t, v in whole], "sum", unit)


def _steps(
    samples: Sequence[tuple[float, Mapping[str, float]]], rail: str, unit: str
) -> tuple[Floats, Floats]:
    """Watts and seconds of each step between two readings of a rail.

    Of a counter of energy only the readings at which it moved count: it is renewed more rarely
    than it is read, and only the moment of a move is known.

    Args:
        samples: seconds, and values by rail.
        rail: one of them.
        unit: mW, or mJ so far.
    """
    pairs = [(t, values[rail]) for t, values in samples if rail in values]
    if unit == "mJ":
        moved = [now for last, now in pairwise(pairs) if now[1] != last[1]]
        t, mj = np.array(moved, np.float64).reshape(-1, 2).T
        return np.diff(mj) / 1000 / np.diff(t), np.diff(t)
    t, mw = np.array(pairs, np.float64).reshape(-1, 2).T
    return (mw[1:] + mw[:-1]) / 2000, np.diff(t)


def _mean(steps: tuple[Floats, Floats]) -> float:
    watts, seconds = steps
    return float(np.average(watts, weights=seconds))


def _half_width(steps: tuple[Floats, Floats], parts: int) -> float:
    """Of the 95 % interval of the mean power, in watts."""
    from scipy import stats

    pairs = zip(*(np.array_split(side, parts) for side in steps), strict=True)
    means = [_mean(pair) for pair in pairs]
    quantile = float(stats.t.ppf(0.975, parts - 1))
    return quantile * float(np.std(means, ddof=1)) / math.sqrt(parts)


def memory_of(before: Mapping[str, Any], after: Mapping[str, Any]) -> Memory | Absent:
    """The peak from what the worker told before it loaded the network and after it ran.

    On a CPU it is by how much the process grew at most. On a GPU with memory of its own it is the
    process's there, the CUDA context's with it. A Jetson's GPU takes its memory from the machine,
    and no process's size shows it: there it is what the machine has less than before, or what the
    process grew by where that is more.

    Args:
        before: answer of `memory` with `restart`.
        after: answer of `memory`.
    """
    host = grown(before["resident_mb"], after["peak_mb"])
    bound = "" if before["restarted"] else ", an upper bound: an earlier peak may be in it"
    growth = f"growth of the process since before it was loaded{bound}"
    if after["gpu_used_mb"] is None:
        return _memory(host, f"peak resident {growth}", host)
    if after["unified"]:
        taken = grown(after["available_mb"], before["available_mb"])
        if taken is not None and taken >= (host or 0.0):
            return _memory(taken, "memory that the whole machine has less than before", host)
        return _memory(host, f"peak resident {growth}, more than what the machine has less", host)
    if after["gpu_mb"] is not None:
        return _memory(after["gpu_mb"], "GPU memory of the process, with its CUDA context", host)
    used = grown(before["gpu_used_mb"], after["gpu_used_mb"])
    return _memory(used, "growth of the whole GPU's used memory: NVML names no process", host)


def _memory(mib: float | None, what: str, host: float | None) -> Memory | Absent:
    if mib is None:
        return Absent(f"nothing tells the {what}")
    return Memory(MB_OF_MIB * mib, what, None if host is None else MB_OF_MIB * host)
