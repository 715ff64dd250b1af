"""Detect that other processes had the CPUs during a measurement, and repeat it if so."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kdcompile.latency import telemetry
from kdcompile.latency.interference import OTHERS, rates
from kdcompile.remote.agent.machine import affinity

T = TypeVar("T")
MOST = 0.10  # of the CPUs' time; with more to others two networks slow down by unlike factors
TRIES = 3


def crowded(run: Callable[[], T], root: Path = Path("/")) -> tuple[T, float]:
    """What a function returns, and the share of the CPUs' time that others had meanwhile.

    0 where nothing tells.
    """
    pids, cpus, start = [os.getpid()], affinity(), time.monotonic()
    before = telemetry.read(root, pids, cpus)
    found = run()
    after = telemetry.read(root, pids, cpus)
    return found, rates(before, after, time.monotonic() - start).get(OTHERS, 0.0)


def quietest(run: Callable[[], T], tries: int = TRIES) -> tuple[T, float]:
    """Of up to `tries` runs the first that others left the CPUs to, else the one they left most.

    Args:
        run: measures.
        tries: at least 1.

    Returns:
        What `run` returned, and the others' share of the CPUs' time; over `MOST` where that run
        may decide nothing.
    """
    best = crowded(run)
    for _ in range(tries - 1):
        if best[1] <= MOST:
            break
        best = min(best, crowded(run), key=lambda found: found[1])
    return best
