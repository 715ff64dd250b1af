"""Bursts of inferences of networks that lie loaded in one process, and the warm-up by them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.latency.interference import Watch
from kdcompile.latency.settings import Way
from kdcompile.remote.open import Place

BLOCK_MS, BURST_MS = 75.0, 20.0
WAKE_MS = 10.0  # before each burst: the other network has had the caches, its threads still spin
MIN_ITERATIONS = 5
MAX_ITERATIONS = 500  # more of a fast network would fill a baseline's file and tell little
AGREE, BURSTS = 0.02, 3  # as many medians in a row, within this share of each other
CLOCKS = ("device", "wall", "end_to_end")
DECIMALS = 6  # of milliseconds


@dataclass(frozen=True)
class Times:
    """Of a burst.

    Args:
        ms: milliseconds of each inference, by the mode's clock.
        wall: the same by the wall clock, where told.
        per_second: inferences of all streams, where there are several.
        parts: what each of them consists of, milliseconds by name, where that is told.
    """

    ms: tuple[float, ...]
    wall: tuple[float, ...]
    per_second: float | None = None
    parts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Pace:
    """Inferences of one block, and those before it that do not count."""

    iterations: int
    warmup: int


@dataclass(frozen=True)
class Warm:
    """A warm-up.

    Args:
        seconds: that it took.
        stable: the latencies became steady.
        ms: mean milliseconds of an inference of each network at its end. The mean, since it says
            how long a block will last where stalls are frequent.
    """

    seconds: float
    stable: bool
    ms: tuple[float, ...]


class Loaded:
    """Networks in one process, by number; one way to time them, one file of inputs.

    Args:
        place: where they are loaded.
        networks: their names there.
        inputs: path there.
        way: how they are timed.
    """

    def __init__(self, place: Place, networks: Sequence[str], inputs: str, way: Way) -> None:
        self.place, self.networks, self.inputs, self.way = place, networks, inputs, way

    def time(self, number: int, iterations: int, warmup: int) -> Times:
        """One burst.

        Raises:
            KDError: the worker's; `time-zero`, a clock that saw no time pass.
        """
        clock, answer = self._ask(number, iterations, warmup)
        told = answer["samples"]
        ms, wall = (tuple(round(float(x), DECIMALS) for x in told[k])
                    if told.get(k) else () for k in (clock, "wall"))  # fmt: skip
        if not all(math.isfinite(value) and value > 0 for value in ms):
            raise KDError(
                "time-zero",
                "a latency is no positive number",
                where=f"{self.place.label}, clock {clock}",
                fix="time a larger input or --batch, so that an inference takes microseconds",
            )
        parts = {k: tuple(map(float, v)) for k, v in told.items() if k not in CLOCKS}
        return Times(ms, wall, answer.get("per_second"), parts)

    def clock(self) -> str:
        """Run each network once; the clock that counts.

        Raises:
            KDError: the worker's, such as `graph-refused` or `shape-refused`.
        """
        clocks = [self._ask(number, 1, 1)[0] for number in range(len(self.networks))]
        return clocks[0]

    def _ask(self, number: int, iterations: int, warmup: int) -> tuple[str, dict[str, Any]]:
        streams = {"streams": self.way.streams} if self.way.streams > 1 else {}
        answer: dict[str, Any] = self.place.call(
            "time",
            inputs=self.inputs,
            iterations=iterations,
            warmup=warmup,
            name=self.networks[number],
            mode=self.way.worker_mode,
            samples=True,
            **streams,
        )
        return next(clock for clock in CLOCKS if answer["samples"].get(clock)), answer


def warm_up(loaded: Loaded, watch: Watch, seconds: float, clock: Callable[[], float]) -> Warm:
    """Interleaved bursts until every network's last three medians agree within 2 %.

    Args:
        loaded: the networks.
        watch: learns what is usual here.
        seconds: the most that it may take; then it ends as not stable.
        clock: seconds, monotonic.
    """
    begin = clock()
    medians: list[list[float]] = [[] for _ in loaded.networks]
    counts, means = [1] * len(medians), [0.0] * len(medians)
    while True:
        for number, seen in enumerate(medians):
            watch.begin()
            ms = loaded.time(number, counts[number], 0).ms
            watch.reason()
            seen.append(median(ms))
            means[number] = fmean(ms)
            counts[number] = _count(BURST_MS, means[number] / loaded.way.streams, 1)
        stable = all(agree(seen[-BURSTS:]) for seen in medians)
        if stable or clock() - begin >= seconds:
            return Warm(clock() - begin, stable, tuple(means))


def pace_of(warm: Warm, streams: int = 1) -> Pace:
    """Blocks of about 75 ms of the slowest network: as many inferences of the others."""
    slowest = max(warm.ms) / streams
    iterations = _count(BLOCK_MS, slowest, max(MIN_ITERATIONS, 2 * streams))
    return Pace(iterations, min(iterations, math.ceil(WAKE_MS / slowest)))


def _count(ms: float, once: float, least: int) -> int:
    return max(least, min(MAX_ITERATIONS, round(ms / once)))


def agree(seen: Sequence[float]) -> bool:
    """Whether so many medians in a row say that a network is warm."""
    return len(seen) == BURSTS and max(seen) <= (1 + AGREE) * min(seen)
