"""What Linux tells of a machine's clocks, load and throttling, read from `/proc` and `/sys`.

A file that is absent, as most are in one container or another, is a signal that is absent.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
GPU_CLOCKS = ("gpu", "gv11b", "gp10b", "ga10b", "gb10b")  # in names of a Jetson's devfreq
BUSY, IDLE, STEAL = (0, 1, 2, 5, 6), (3, 4), 7  # columns of /proc/stat; guests are in user
NS = 1e-9


@dataclass(frozen=True)
class Reading:
    """Counters at one moment; None where nothing tells.

    Args:
        busy_s: CPU seconds that all processes have had on the CPUs in question.
        total_s: CPU seconds that there were, idle ones too.
        steal_s: of them, those that a virtual machine's host gave to others.
        own_s: CPU seconds of the processes that measure.
        wait_s: seconds that these were ready to run and had no CPU.
        switches: times that these were taken off a CPU.
        quota_s: seconds that their control group was held back by its quota.
        throttle_events: of the CPU's temperature, and of a Jetson's current.
        cpu_hz: the fastest of the CPUs.
        gpu_hz: the fastest of a Jetson's GPU clocks.
    """

    busy_s: float | None = None
    total_s: float | None = None
    steal_s: float | None = None
    own_s: float | None = None
    wait_s: float | None = None
    switches: float | None = None
    quota_s: float | None = None
    throttle_events: float | None = None
    cpu_hz: float | None = None
    gpu_hz: float | None = None


def read(root: Path, pids: Sequence[int], cpus: Iterable[int]) -> Reading:
    """The counters now.

    Args:
        root: what stands for `/`.
        pids: the processes that measure, the timed one first.
        cpus: on which these may run.
    """
    cpus = set(cpus)
    busy, total, steal = _stat(root, cpus)
    own = [_threads(root, pid) for pid in pids]
    timed = own[0] if own else (None, None, None)
    return Reading(
        busy_s=busy,
        total_s=total,
        steal_s=steal,
        own_s=_sum([ran for ran, _, _ in own]),
        wait_s=timed[1],
        switches=timed[2],
        quota_s=_quota(root, pids[0]) if pids else None,
        throttle_events=_throttles(root, cpus),
        cpu_hz=cpu_hz(root, cpus),
        gpu_hz=gpu_hz(root),
    )


def text_of(path: Path) -> str:
    """The content, stripped; empty where the file is absent or not for this user."""
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:  # a thread or a board's file may go while it is read
        return ""


def number_of(path: Path) -> float | None:
    """The number in a file."""
    try:
        return float(text_of(path))
    except ValueError:
        return None


def cpu_hz(root: Path, cpus: Iterable[int]) -> float | None:
    """The fastest current clock: an idle core's says nothing of the one that computes."""
    folder = root / "sys/devices/system/cpu"
    found = (number_of(folder / f"cpu{n}/cpufreq/scaling_cur_freq") for n in cpus)
    khz = [value for value in found if value]
    return 1000 * max(khz) if khz else None


def gpu_hz(root: Path) -> float | None:
    """The fastest clock of a GPU that devfreq drives, as a Jetson's."""
    found = [
        number_of(path)
        for path in (root / "sys/class/devfreq").glob("*/cur_freq")
        if any(word in path.parent.name for word in GPU_CLOCKS)
    ]
    hz = [value for value in found if value]
    return max(hz) if hz else None


def celsius(root: Path) -> dict[str, float]:
    """Temperatures of the thermal zones, by type."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = number_of(zone / "temp")
        if value is not None:
            found[text_of(zone / "type") or zone.name] = value / 1000
    return found


def _stat(root: Path, cpus: set[int]) -> tuple[float, float, float] | tuple[None, None, None]:
    busy = idle = steal = 0.0
    for line in text_of(root / "proc/stat").splitlines():
        found = re.match(r"cpu(\d+) ", line)
        if found and int(found[1]) in cpus:
            columns = [int(word) for word in line.split()[1:]] + [0] * 8
            busy += sum(columns[i] for i in BUSY)
            idle += sum(columns[i] for i in IDLE)
            steal += columns[STEAL]
    if not busy + idle:
        return None, None, None
    return busy / TICKS_PER_S, (busy + idle + steal) / TICKS_PER_S, steal / TICKS_PER_S


def _threads(root: Path, pid: int) -> tuple[float | None, float | None, float | None]:
    """Seconds that a process's threads ran and waited, and their involuntary switches."""
    ran, waited, switches = [], [], []
    for task in (root / f"proc/{pid}/task").glob("*"):
        words = text_of(task / "schedstat").split()
        if len(words) == 3:
            ran.append(int(words[0]) * NS)
            waited.append(int(words[1]) * NS)
        found = re.search(r"^nonvoluntary_ctxt_switches:\s*(\d+)", text_of(task / "status"), re.M)
        if found:
            switches.append(float(found[1]))
    if not ran:  # a kernel without the scheduler's statistics; coarser
        fields = text_of(root / f"proc/{pid}/stat").rpartition(")")[2].split()
        ran = [(int(fields[11]) + int(fields[12])) / TICKS_PER_S] if len(fields) > 12 else []
    return _sum(ran), _sum(waited), _sum(switches)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _quota(root: Path, pid: int) -> float | None:
    """Seconds that the control group was held back: cgroup 2 in microseconds, 1 in nanoseconds."""
    for line in text_of(root / f"proc/{pid}/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        base = root / "sys/fs/cgroup" / kinds
        for group in (base / path.lstrip("/"), base):  # in a container the path is its host's
            text = text_of(group / "cpu.stat")
            found = re.search(r"^throttled_(usec|time) (\d+)", text, re.M)
            if found:
                return int(found[2]) * (1e-6 if found[1] == "usec" else NS)
    return None


def _throttles(root: Path, cpus: set[int]) -> float | None:
    folder = root / "sys/devices/system/cpu"
    paths = [folder / f"cpu{n}/thermal_throttle/{kind}_throttle_count"
             for n in sorted(cpus) for kind in ("core", "package")]  # fmt: skip
    paths += sorted((root / "sys/class/hwmon").glob("hwmon*/oc*_event_cnt"))
    return _sum([number_of(path) for path in paths])
