"""Energy and memory of a network, measured by the worker alone in a process of its own."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

from numpy.typing import NDArray

from kdcompile.backends import engine
from kdcompile.core.errors import KDError
from kdcompile.remote.open import Place
from kdcompile.remote.usage import Absent, Energy, Memory, energy_of, memory_of

NETWORK = "measured"
SECONDS, IDLE_S = 5.0, 2.0
Load = Callable[[Place, str], Mapping[str, NDArray[Any]]]
log = logging.getLogger("kdcompile")


@dataclass(frozen=True)
class Resources:
    """What a network takes of its device."""

    energy: Energy | Absent
    memory: Memory | Absent


def measure(
    open_: Callable[[], AbstractContextManager[Place]],
    load: Load,
    *,
    seconds: float = SECONDS,
    idle_s: float = IDLE_S,
) -> Resources:
    """Energy and memory of a network, alone in a process of its own.

    Args:
        open_: the place, with a fresh worker.
        load: loads the network there under a name, and gives its inputs by name.
        seconds: of inferences under which power is read.
        idle_s: before them, of an idle device.

    Raises:
        KDError: what opening the place, loading and running raise.
    """
    with open_() as place:
        before = place.call("memory", restart=True)
        there = place.inputs(load(place, NETWORK))
        once: dict[str, Any] = {"inputs": there, "name": NETWORK, "iterations": 3, "warmup": 1}
        mode, _ = engine.leanest(place, lambda mode: place.call("time", mode=mode, **once))
        memory = memory_of(before, place.call("memory"))
        log.info("measuring energy and memory at %s", place.label)
        answer = place.call(
            "power", inputs=there, name=NETWORK, mode=mode, seconds=seconds, idle_s=idle_s
        )
    return Resources(energy_of(answer), memory)


def usage(open_: Callable[[], AbstractContextManager[Place]], load: Load) -> dict[str, Any]:
    """What `measure` finds as plain JSON values: a side fact, whose failure is no error.

    Returns:
        `energy` (mJ of an inference, its `low` and `high`, `above_idle_mj`, `watts`, `idle_watts`,
        `source`, `judged`, `mode`, ...) and `memory` (`mb`, `what`, `host_mb`); in place of either
        `{"absent": reason}`.
    """
    try:
        found = measure(open_, load)
    except KDError as error:
        nothing = Absent(f"{error.message} ({error.code})")
        found = Resources(nothing, nothing)
    sides = {"energy": found.energy, "memory": found.memory}
    return {
        name: {"absent": side.reason} if isinstance(side, Absent) else asdict(side)
        for name, side in sides.items()
    }
