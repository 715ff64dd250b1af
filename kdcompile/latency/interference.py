"""Detect what disturbed a block: other load, a clock that fell, throttling that began.

Each signal is held against what is usual in this run, the median so far: a load that is always
there is the machine's state, which slows both sides alike, and only what comes and goes is a
disturbance. Reasons are fixed words, so that they can be counted.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from kdcompile.backends import nvidia_smi
from kdcompile.remote.agent.machine import affinity
from kdcompile.remote.agent.signals import signals
from kdcompile.remote.open import LocalPlace, Place
from kdcompile.remote.usage import grown

Signals = Mapping[str, Any]  # of `remote.agent.signals`; what nothing tells is absent
KEPT = 200  # blocks that the usual is the median of
LEAST = 3  # readings, before there is a usual
CLOCK_FALL = 0.05
OTHERS = "other processes took the CPUs"
# by how much a signal may exceed the usual; a CPU's ticks are 10 ms, a tenth of a block
ALLOWED = {
    OTHERS: 0.25,  # share of the CPUs' time
    "the process waited for a CPU": 0.10,  # share of the time that it ran or could have
    "the host took the CPUs (steal)": 0.10,  # share of the CPUs' time
    "the control group's quota held it back": 0.05,  # share of the block
    "it was taken off a CPU more often": 200.0,  # a second
    "throttling began": 0.0,  # events a second
}
UNITS = ("cpu", "gpu")
COOLING = "it was slowed to cool down"  # by more steps than usual
Look = Callable[[], Signals]


@dataclass(frozen=True)
class _Start:
    at: float
    signals: Signals


class Watch:
    """Finds what disturbed a block, one block after the other.

    Args:
        look: the counters now; None for no watch.
        clock: seconds, monotonic.
        past: of the processes before this one in the same run.
    """

    def __init__(
        self,
        look: Look | None,
        clock: Callable[[], float] = time.monotonic,
        past: "Past | None" = None,
    ) -> None:
        self._look, self._clock = look, clock
        self._past = Past() if past is None else past
        self._start: _Start | None = None

    def begin(self) -> None:
        """A block, or a burst of the warm-up, begins."""
        if self._look is not None:
            self._start = _Start(self._clock(), self._look())

    def reason(self) -> str | None:
        """What disturbed it, now that it has ended; None where nothing was seen."""
        if self._look is None or self._start is None:
            return None
        start, now = self._start, self._look()
        values = rates(start.signals, now, self._clock() - start.at)
        if now.get("cooling") is not None:
            values[COOLING] = now["cooling"]
        if (flags := now.get("gpu_flags")) is not None:
            for bit, word in nvidia_smi.REASONS.items():
                values[f"the GPU throttles: {word}"] = float(bool(flags & bit))
        clocks = {f"the {unit.upper()}'s clock fell": now.get(f"{unit}_hz") for unit in UNITS}
        found = [name for name, value in values.items() if self._past.exceeds(name, value)]
        fell = [name for name, hz in clocks.items() if hz and self._past.fell(name, hz)]
        return next(iter(found + fell), None)


class Past:
    """The signals of the blocks so far, by name."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    def exceeds(self, name: str, value: float) -> bool:
        """Whether a value is above the usual by more than is allowed; it is remembered."""
        usual = self._usual(name, value)
        return usual is not None and value > usual + ALLOWED.get(name, 0.0)

    def fell(self, name: str, hz: float) -> bool:
        """Whether a clock is below the usual by more than 5 %; it is remembered."""
        usual = self._usual(name, hz)
        return usual is not None and hz < (1 - CLOCK_FALL) * usual

    def _usual(self, name: str, value: float) -> float | None:
        seen = self._seen.setdefault(name, deque(maxlen=KEPT))
        usual = median(seen) if len(seen) >= LEAST else None
        seen.append(value)
        return usual

    def to_json(self) -> dict[str, float]:
        """The usual value of each signal."""
        return {name: round(median(seen), 4) for name, seen in sorted(self._seen.items())}


def rates(start: Signals, end: Signals, seconds: float) -> dict[str, float]:
    """Each signal of the time between two readings; those that nothing tells are absent.

    Args:
        start: the earlier one.
        end: the later one.
        seconds: between them.
    """
    names = ("busy_s", "total_s", "own_s", "wait_s", "steal_s", "quota_s", "switches",
             "throttle_events")  # fmt: skip
    more = {name: grown(start.get(name), end.get(name)) for name in names}
    used, total, own, waited = (more[name] for name in names[:4])
    others = None if used is None or own is None else max(0.0, used - own)
    wanted = None if own is None or waited is None else own + waited
    shares = (
        _share(others, total),
        _share(waited, wanted),
        _share(more["steal_s"], total),
        *(_share(more[name], seconds) for name in names[5:]),
    )
    found = dict(zip(ALLOWED, shares, strict=True))
    return {name: share for name, share in found.items() if share is not None}


def watch_of(place: Place, past: Past) -> Watch:
    """The watch over a device, by what its worker reads there.

    Args:
        place: open.
        past: of the run so far.
    """
    beside = [os.getpid()] if isinstance(place, LocalPlace) else []

    def look() -> Signals:
        return place.call("signals", beside=beside, with_sensors=False)

    return Watch(look, past=past)


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else part / whole


T = TypeVar("T")
MOST = 0.10  # of the CPUs' time; with more to others two networks slow down by unlike factors
TRIES = 3


def crowded(run: Callable[[], T], root: Path = Path("/")) -> tuple[T, float]:
    """What a function returns, and the share of the CPUs' time that others had meanwhile.

    0 where nothing tells.
    """
    pids, cpus, start = [os.getpid()], affinity(), time.monotonic()
    before = signals(str(root), pids, cpus)
    found = run()
    after = signals(str(root), pids, cpus)
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
