"""What a machine tells of its clocks, load and throttling at one moment."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from kdcompile.remote.agent.signals import signals


@dataclass(frozen=True)
class Reading:
    """Counters at one moment; None where nothing tells.

    Args:
        busy_s: CPU seconds that all processes have had on the CPUs in question.
        total_s: CPU seconds that there were, idle ones too.
        steal_s: of them, those that a virtual machine's host gave to others.
        own_s: CPU seconds of the processes that measure.
        wait_s: seconds that the timed one was ready to run and had no CPU.
        switches: times that it was taken off a CPU.
        quota_s: seconds that its control group was held back by its quota.
        throttle_events: of the CPU's temperature, and of a Jetson's current.
        cooling: steps by which cooling devices other than fans slow the machine down.
        cpu_hz: the fastest of the CPUs.
        gpu_hz: the fastest of a Jetson's GPU clocks, or the card's.
        gpu_flags: the mask of what throttles an NVIDIA GPU, as NVML has it.
    """

    busy_s: float | None = None
    total_s: float | None = None
    steal_s: float | None = None
    own_s: float | None = None
    wait_s: float | None = None
    switches: float | None = None
    quota_s: float | None = None
    throttle_events: float | None = None
    cooling: float | None = None
    cpu_hz: float | None = None
    gpu_hz: float | None = None
    gpu_flags: int | None = None


def reading(told: Mapping[str, Any]) -> Reading:
    """Of the worker's answer to `signals`, whose other values are left out."""
    return Reading(**{field.name: told.get(field.name) for field in fields(Reading)})


def read(root: Path, pids: Sequence[int], cpus: Iterable[int]) -> Reading:
    """The counters of this machine now.

    Args:
        root: what stands for `/`.
        pids: the processes that measure, the timed one first.
        cpus: on which these may run.
    """
    return reading(signals(str(root), pids, cpus))
