"""Did others have the CPUs during a run?"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from kdcompile.backends.worker import affinity
from kdcompile.bench import signals
from kdcompile.bench.watch import ALLOWED, OTHERS, rates

T = TypeVar("T")


def crowded(run: Callable[[], T], root: Path = Path("/")) -> tuple[T, str]:
    """What a function returns, and words for what share of the CPUs others had meanwhile.

    "" where that is little, or nothing tells.
    """
    pids, cpus, start = [os.getpid()], affinity(), time.monotonic()
    before = signals.read(root, pids, cpus)
    found = run()
    after = signals.read(root, pids, cpus)
    share = rates(before, after, time.monotonic() - start).get(OTHERS, 0.0)
    if share <= ALLOWED[OTHERS]:
        return found, ""
    return found, f"{share:.0%} of the CPUs' time went to other processes: at rest it may differ"
