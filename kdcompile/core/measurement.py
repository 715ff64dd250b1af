"""Measure callables of this process interleaved, so that a drift touches all alike.

A sample is the fastest call of its block. Means contain other processes too: where another has a
CPU, threads that wait for one another stand still together, and the network with more of that
loses more. And of two networks that are open in one process each finds the other's threads
spinning. `kdcompile.stats.latency_interval` reduces the samples.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.interleave import MIN_BLOCKS, interleave

Floats = NDArray[np.float64]
BLOCK_SECONDS = 0.3  # longer blocks of fast calls would add time and no samples


@dataclass(frozen=True)
class Settings:
    """How much to measure.

    Args:
        blocks: samples wanted of each callable; at least `MIN_BLOCKS`.
        warmup: calls of each before anything is kept; at least 1, the last one sizes the blocks.
        seconds: the time that all blocks together may take. Callables too slow for it give fewer
            blocks, never fewer than `MIN_BLOCKS`.
        repeats: the most calls of one callable in a block.
    """

    blocks: int = 30
    warmup: int = 3
    seconds: float = 30.0
    repeats: int = 200


@dataclass(frozen=True, eq=False)
class Samples:
    """Latencies of callables that were measured together.

    Args:
        ms: by name, float64 [blocks]: milliseconds of the fastest call of each block; samples at
            one place are neighbours in time.
        repeats: calls in each block, which its sample stands for.
    """

    ms: Mapping[str, Floats]
    repeats: int


def measure(
    runners: Mapping[str, Callable[[], object]],
    settings: Settings | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Samples:
    """Time interleaved callables on this machine, by the wall clock.

    Args:
        runners: at least one, by name.
        settings: how much.
        clock: seconds, monotonic.
    """
    used = settings or Settings()
    blocks, warmup = used.blocks, used.warmup
    if blocks < MIN_BLOCKS or warmup < 1:
        raise ValueError(f"needs blocks >= {MIN_BLOCKS} and warmup >= 1, got {blocks}, {warmup}")
    once = 0.0
    for _ in range(warmup):
        once = sum(_fastest(runner, 1, clock) for runner in runners.values())
    block = min(used.seconds / blocks, BLOCK_SECONDS)
    wanted = math.floor(block / once) - 1 if once > 0 else used.repeats
    repeats = min(max(wanted, 1), used.repeats)
    times: dict[str, list[float]] = {name: [] for name in runners}
    start = clock()
    interleave(
        list(runners),
        lambda name, _: times[name].append(_fastest(runners[name], repeats, clock)),
        blocks,
        lambda: clock() - start < used.seconds,
    )
    return Samples({name: np.array(found) * 1000.0 for name, found in times.items()}, repeats)


def _fastest(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest call, after one more where that is cheap: it takes back the caches."""
    if repeats > 1:
        call()
    stamps = [clock()]
    for _ in range(repeats):
        call()
        stamps.append(clock())
    return min(end - start for start, end in pairwise(stamps))
