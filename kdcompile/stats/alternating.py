"""Two callables timed side by side, so that a drift of the machine touches both alike.

A difference of seconds apart would be a difference of clocks, caches and neighbours. Each block
times a short run of A and of B, in the order A B, then B A, and so on; the blocks are the samples.

A sample is the fastest call of its block. Means tell of others too: where another has a CPU,
threads that wait for one another stand still together, and the network with more of that loses
more. And of two networks that are open in one process each finds the other's threads spinning.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable

import numpy as np

from kdcompile.core.errors import KDError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MIN_BLOCKS = 6  # fewer distinct resamples than 6 blocks have cannot carry a 95 % interval
MAX_REPEATS = 200
BLOCK_SECONDS = 0.3  # longer blocks of fast calls would add time and no samples
RESAMPLES = 4000


@dataclass(frozen=True, eq=False)
class PairedTimes:
    """Milliseconds a call, one sample a block; sample i of `a` and of `b` are neighbours in time.

    Args:
        a: float64 [blocks].
        b: float64 [blocks].
        repeats: calls in each block, which its sample stands for.
    """

    a: Floats
    b: Floats
    repeats: int


def alternate(
    a: Callable[[], object],
    b: Callable[[], object],
    *,
    blocks: int = 30,
    warmup: int = 3,
    seconds: float = 30.0,
    clock: Callable[[], float] = time.perf_counter,
) -> PairedTimes:
    """Time two callables alternately on this machine, wall clock.

    Args:
        a: the first callable.
        b: the second.
        blocks: samples wanted of each; at least `MIN_BLOCKS`.
        warmup: calls of each before anything is kept; at least 1, the last one sizes the blocks.
        seconds: the time that all blocks together may take. A pair of callables too slow for
            it gives fewer blocks, never fewer than `MIN_BLOCKS`.
        clock: seconds, monotonic.

    Returns:
        The fastest call of A and of B in each block that was timed.
    """
    if blocks < MIN_BLOCKS or warmup < 1:
        raise ValueError(f"needs blocks >= {MIN_BLOCKS} and warmup >= 1, got {blocks}, {warmup}")
    pair = 0.0
    for _ in range(warmup):
        pair = _fastest(a, 1, clock) + _fastest(b, 1, clock)
    block = min(seconds / blocks, BLOCK_SECONDS)
    wanted = math.floor(block / pair) - 1 if pair > 0 else MAX_REPEATS
    repeats = min(max(wanted, 1), MAX_REPEATS)
    times_a: list[float] = []
    times_b: list[float] = []
    start = clock()
    while len(times_a) < blocks:
        if len(times_a) >= MIN_BLOCKS and clock() - start >= seconds:
            break
        if len(times_a) % 2:
            times_b.append(_fastest(b, repeats, clock))
            times_a.append(_fastest(a, repeats, clock))
        else:
            times_a.append(_fastest(a, repeats, clock))
            times_b.append(_fastest(b, repeats, clock))
    return PairedTimes(np.array(times_a) * 1000.0, np.array(times_b) * 1000.0, repeats)


def ratio_interval(times: PairedTimes, seed: int) -> tuple[float, float, float]:
    """How many times faster B is than A, with a 95 % interval.

    The ratio is that of the medians. The interval is a percentile bootstrap over blocks; a block
    is drawn with both of its samples, so what slowed both cancels.

    Returns:
        `(ratio, low, high)`.

    Raises:
        KDError: `time-zero`, the clock saw no time pass in B.
    """
    if not float(np.median(times.b)) > 0:
        raise KDError(
            "time-zero",
            "a timed call took no measurable time",
            where="paired latency",
            fix="time a larger input, so that one call takes at least some microseconds",
        )
    picks = _picks(len(times.a), seed)
    ratios = np.median(times.a[picks], axis=1) / np.median(times.b[picks], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(times.a) / np.median(times.b)), float(low), float(high)


def median_interval(samples: Floats, seed: int) -> tuple[float, float, float]:
    """The median of one side's samples with a 95 % percentile bootstrap interval.

    Returns:
        `(median, low, high)` in the unit of `samples`.
    """
    medians = np.median(samples[_picks(len(samples), seed)], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(np.median(samples)), float(low), float(high)


def _picks(count: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))


def _fastest(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest call, after one more where that is cheap: it takes back the caches."""
    if repeats > 1:
        call()
    stamps = [clock()]
    for _ in range(repeats):
        call()
        stamps.append(clock())
    return min(end - start for start, end in zip(stamps, stamps[1:]))
