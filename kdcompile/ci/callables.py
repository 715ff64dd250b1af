"""Latencies of functions, timed in the process that calls them, as samples of the same shape.

All blocks are of one process, so the spread between processes is not seen; a comparison knows that
from the tree and counts with what is usual. Where two functions are given they take turns.
"""

import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median
from typing import Any, Protocol

from kdcompile.core.errors import KDError
from kdcompile.core.interleave import interleave
from kdcompile.core.store import digest
from kdcompile.latency.environment import fingerprint
from kdcompile.latency.warmup import BURSTS, agree
from kdcompile.stats.samples import Block, Build, Process, Run, Samples

SAMPLE_S = 1e-4  # of one sample at least: reading the clock twice costs a thousandth of that
BLOCK_S, BURST_S = 0.05, 0.02
MIN_ITERATIONS, MAX_ITERATIONS = 5, 200  # more would fill a baseline's file and tell little
MIN_BLOCKS, MAX_BLOCKS = 8, 60
BLOCKS_PER_S = MAX_BLOCKS / 10  # who asks for more time than the usual has more blocks of it
REPEATS = 1 / 3  # of the blocks: at most so many more where some were disturbed
WARMUP_SHARE, WARMUP_S = 0.25, 2.0  # the most that a warm-up may take
MAX_CALLS = 1 << 16  # of one sample

Call = Callable[[], object]
Clock = Callable[[], float]


class Watching(Protocol):
    """What `kdcompile.latency.interference.Watch` does."""

    def begin(self) -> None:
        """A block begins."""

    def reason(self) -> str | None:
        """What disturbed the block that ends now."""


@dataclass(frozen=True)
class Timer:
    """How functions are timed.

    Args:
        seconds: that all blocks may take; the least number of them is taken however long that is.
        calls: of one sample, which is their mean; None finds a number for `SAMPLE_S`. Samples of
            different numbers do not compare, so a baseline's number is used again.
        clock: seconds, monotonic.
        watch: says what disturbed a block; by default what Linux tells of this process.
    """

    seconds: float = 10.0
    calls: int | None = None
    clock: Clock = time.perf_counter
    watch: Watching | None = None

    def time(self, named: Mapping[str, Call]) -> list[Samples]:
        """Time functions in turns: A B, then B A, and so on.

        Args:
            named: one function or two, by the names of their samples. Each is called many times.

        Returns:
            One `Samples` each, of one run and one process; blocks at the same place are
            neighbours in time.

        Raises:
            KDError: `callable-failed`, a function raises; `time-zero`, the clock saw no time pass.
        """
        calls = list(named.values())
        started = datetime.now(UTC).isoformat(timespec="seconds")
        gc.collect()
        each, stable = self._warm_up(calls)
        if not min(each) > 0:
            raise KDError(
                "time-zero",
                "a timed function took no measurable time",
                where=next(iter(named)),
                fix="let the function do more work in one call",
            )
        count = self.calls or _calls_for(min(each))
        size = int(BLOCK_S / (count * max(each)))
        blocks = self._blocks(calls, min(max(size, MIN_ITERATIONS), MAX_ITERATIONS), count)
        environment = {"facts": facts(), "state": {"warmup_stable": stable}}
        made = []
        for name, side in zip(named, blocks, strict=True):
            sha256 = digest({"callable": name})
            build = Build(sha256, (Process(tuple(side)),))
            made.append(Samples(name, sha256, (Run(started, environment, mode(count), (build,)),)))
        return made

    def _warm_up(self, calls: Sequence[Call]) -> tuple[list[float], bool]:
        """Seconds of one call of each, and whether their medians agreed in the end."""
        begin, limit = self.clock(), min(WARMUP_S, WARMUP_SHARE * self.seconds)
        seen: list[list[float]] = [[] for _ in calls]
        counts = [1] * len(calls)
        while True:
            for i, call in enumerate(calls):
                times = [self._sample(call, 1) for _ in range(counts[i])]
                seen[i].append(median(times))
                counts[i] = min(max(3, int(BURST_S / max(seen[i][-1], 1e-9))), MAX_ITERATIONS)
            stable = all(agree(medians[1:][-BURSTS:]) for medians in seen)  # the first is cold
            if stable or self.clock() - begin >= limit:
                return [medians[-1] for medians in seen], stable

    def _blocks(self, calls: Sequence[Call], size: int, count: int) -> list[list[Block]]:
        watch = self.watch or process_watch()
        sides: list[list[Block]] = [[] for _ in calls]
        wanted = max(MAX_BLOCKS, round(BLOCKS_PER_S * self.seconds))
        begin = self.clock()

        def take(i: int, turn: int) -> bool:
            self._sample(calls[i], count)  # takes back the caches that the other one had
            at = self.clock() - begin
            watch.begin()
            with _no_collection():
                times = [self._sample(calls[i], count) * 1000 for _ in range(size)]
            sides[i].append(Block(tuple(times), round(at, 3), watch.reason()))
            return sides[i][-1].disturbed is not None

        interleave(
            range(len(calls)), take, wanted, lambda: self.clock() - begin < self.seconds,
            least=MIN_BLOCKS, repeats=round(REPEATS * wanted),
        )  # fmt: skip
        return sides

    def _sample(self, call: Call, count: int) -> float:
        """Seconds of one call, the mean of `count`."""
        start = self.clock()
        try:
            for _ in range(count):
                call()
        except Exception as error:
            raise KDError(
                "callable-failed",
                f"the timed function raised {type(error).__name__}: {error}",
                where=getattr(call, "__qualname__", repr(call)),
                fix="hand a function that can be called many times without arguments",
            ) from error
        return (self.clock() - start) / count


def mode(calls: int) -> dict[str, Any]:
    """What is written beside the samples, and must be equal where they are compared.

    Args:
        calls: of one sample.
    """
    return {
        "clock": "wall",
        "what": "a function, in the process of its test",
        "calls_of_a_sample": calls,
        "garbage_collection": "off",
        "traced": traced(),
    }


def traced() -> bool:
    """Whether a debugger or a coverage tool follows every line, which slows Python code."""
    if sys.gettrace() is not None or sys.getprofile() is not None:
        return True
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    return monitoring is not None and any(monitoring.get_tool(i) for i in range(6))


def facts() -> dict[str, Any]:
    """What the latency of a function depends on and stays put, versions under `_version`."""
    machine = fingerprint()
    libraries = {f"{name}_version": v for name, v in machine.pop("libraries").items()}
    machine["python_version"] = machine.pop("python")
    machine.pop("os")  # its kernel changes with every update
    threads = {k: os.environ[k] for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ}
    return machine | libraries | {"threads": threads or None}


def process_watch() -> Watching:
    """A watch over this process, by what Linux tells; elsewhere one that sees nothing."""
    from kdcompile.latency.interference import Watch

    if not hasattr(os, "sched_getaffinity"):
        return Watch(None)
    from kdcompile.remote.agent.signals import signals

    cpus = os.sched_getaffinity(0)
    return Watch(lambda: signals("/", (os.getpid(),), cpus))


def _calls_for(seconds: float) -> int:
    """A power of two: a small drift of the machine then seldom changes it."""
    count = 1
    while count * seconds < SAMPLE_S and count < MAX_CALLS:
        count *= 2
    return count


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
