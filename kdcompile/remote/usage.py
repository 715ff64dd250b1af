"""Energy of an inference and peak memory of a network, from a worker's readings of its device.

Used by kdcompile and, as a copy in the kit, on the board: Python 3.8 and numpy only. Where nothing
tells, the result is `Absent` with the reason, never a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# what a module draws in all; its other rails are parts of it
TOTALS = ("VDD_IN", "POM_5V_IN")
PARTS, MIN_PARTS = 10, 3  # of the time, whose means give the interval
# Student's t at 0.975 by the number of parts
QUANTILES = {3: 4.302653, 4: 3.182446, 5: 2.776445, 6: 2.570582, 7: 2.446912, 8: 2.364624,
             9: 2.306004, 10: 2.262157}  # fmt: skip
MB_OF_MIB = 1.048576


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
) -> tuple[Any, Any]:
    """The steps of the sum of rails, over the readings that have all of them."""
    whole = [(t, v) for t, v in samples if all(rail in v for rail in rails)]
    return _steps([(t, {"sum": sum(v[rail] for rail in rails)}) for t, v in whole], "sum", unit)


def _steps(
    samples: Sequence[tuple[float, Mapping[str, float]]], rail: str, unit: str
) -> tuple[Any, Any]:
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
        moved = [now for last, now in zip(pairs, pairs[1:]) if now[1] != last[1]]
        t, mj = np.array(moved, np.float64).reshape(-1, 2).T
        return np.diff(mj) / 1000 / np.diff(t), np.diff(t)
    t, mw = np.array(pairs, np.float64).reshape(-1, 2).T
    return (mw[1:] + mw[:-1]) / 2000, np.diff(t)


def _mean(steps: tuple[Any, Any]) -> float:
    watts, seconds = steps
    return float(np.average(watts, weights=seconds))


def _half_width(steps: tuple[Any, Any], parts: int) -> float:
    """Of the 95 % interval of the mean power, in watts."""
    watts, seconds = (np.array_split(side, parts) for side in steps)
    means = [_mean(pair) for pair in zip(watts, seconds)]
    return QUANTILES[parts] * float(np.std(means, ddof=1)) / math.sqrt(parts)


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


def grown(start: float | None, end: float | None) -> float | None:
    """By how much a number rose; None where either was not told."""
    return None if start is None or end is None else max(0.0, end - start)
