"""Counters, clocks, temperatures and throttling of a machine at this moment."""

from __future__ import annotations

import glob
import os
import re
from typing import Any, Iterable

from kdcompile.remote.agent.machine import CPU, GPU_CLOCKS, clocks_hz
from kdcompile.remote.agent.power import ina3221
from kdcompile.remote.agent.system import first_line, read_number, read_text

BUSY, IDLE, STEAL = (0, 1, 2, 5, 6), (3, 4), 7  # columns of /proc/stat; guests are in user
TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
NS = 1e-9


def signals(root: str, pids: Iterable[int | str], cpus: Iterable[int]) -> dict[str, Any]:
    """Counters and clocks at this moment; what nothing tells is absent.

    Args:
        root: what stands for `/`.
        pids: the processes that measure, the timed one first.
        cpus: on which these may run.

    Returns:
        Of all CPUs in question, in CPU seconds: `busy_s` of every process, `total_s` with the idle
        ones, `steal_s` that a virtual machine's host gave to others. Of the processes: `own_s` that
        they had. Of the timed one: `wait_s` that it was ready and had no CPU, `switches` that took
        it off one, `quota_s` that its control group was held back. `throttle_events` of the CPU's
        temperature and of a Jetson's current, `cooling`, the steps by which cooling devices other
        than fans slow something down, `cpu_hz` and `gpu_hz`, the fastest of either.
    """
    pids, cpus = list(pids), set(cpus)
    own = [_threads(root, pid) for pid in pids]
    timed = own[0] if own else (None, None, None)
    clocks = clocks_hz(os.path.join(root, "sys"))
    gpu = [hz for name, hz in clocks.items() if hz and any(word in name for word in GPU_CLOCKS)]
    khz = [read_number(os.path.join(root, CPU, f"cpu{n}/cpufreq/scaling_cur_freq")) for n in cpus]
    found = {
        **_ticks(root, cpus), "own_s": _total([ran for ran, _, _ in own]),
        "wait_s": timed[1], "switches": timed[2],
        "quota_s": _quota(root, pids[0]) if pids else None,
        "throttle_events": _throttles(root, cpus), "cooling": _total(cooling(root).values()),
        # an idle core's clock says nothing of the one that computes
        "cpu_hz": 1000 * max(filter(None, khz)) if any(khz) else None,
        "gpu_hz": float(max(gpu)) if gpu else None,
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}


def _ticks(root: str, cpus: set[int]) -> dict[str, float]:
    busy = idle = steal = 0.0
    for line in read_text(os.path.join(root, "proc/stat")).splitlines():
        found = re.match(r"cpu(\d+) ", line)
        if found and int(found[1]) in cpus:
            columns = [int(word) for word in line.split()[1:]] + [0] * 8
            busy += sum(columns[i] for i in BUSY)
            idle += sum(columns[i] for i in IDLE)
            steal += columns[STEAL]
    if not busy + idle:
        return {}
    found_s = {"busy_s": busy, "total_s": busy + idle + steal, "steal_s": steal}
    return {name: ticks / TICKS_PER_S for name, ticks in found_s.items()}


def _threads(root: str, pid: int | str) -> tuple[float | None, float | None, float | None]:
    """Seconds that a process's threads ran and waited, and their involuntary switches."""
    ran, waited, switches = [], [], []
    for task in glob.glob(os.path.join(root, f"proc/{pid}/task/*")):
        words = read_text(os.path.join(task, "schedstat")).split()
        if len(words) == 3:
            ran.append(int(words[0]) * NS)
            waited.append(int(words[1]) * NS)
        status = read_text(os.path.join(task, "status"))
        found = re.search(r"^nonvoluntary_ctxt_switches:\s*(\d+)", status, re.M)
        if found:
            switches.append(float(found[1]))
    if not ran:  # a kernel without the scheduler's statistics; coarser
        fields = read_text(os.path.join(root, f"proc/{pid}/stat")).rpartition(")")[2].split()
        ran = [(int(fields[11]) + int(fields[12])) / TICKS_PER_S] if len(fields) > 12 else []
    return _total(ran), _total(waited), _total(switches)


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _quota(root: str, pid: int | str) -> float | None:
    """Seconds that the control group was held back: cgroup 2 in microseconds, 1 in nanoseconds."""
    for line in read_text(os.path.join(root, f"proc/{pid}/cgroup")).splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        base = os.path.join(root, "sys/fs/cgroup", kinds)
        for group in (
            os.path.join(base, path.lstrip("/")),
            base,
        ):  # in a container it is its host's
            text = read_text(os.path.join(group, "cpu.stat"))
            found = re.search(r"^throttled_(usec|time) (\d+)", text, re.M)
            if found:
                return int(found[2]) * (1e-6 if found[1] == "usec" else NS)
    return None


def _throttles(root: str, cpus: set[int]) -> float | None:
    paths = [os.path.join(root, CPU, f"cpu{n}/thermal_throttle/{kind}_throttle_count")
             for n in sorted(cpus) for kind in ("core", "package")]  # fmt: skip
    paths += glob.glob(os.path.join(root, "sys/class/hwmon/hwmon*/oc*_event_cnt"))
    return _total(map(read_number, paths))


def cooling(root: str) -> dict[str, float]:
    """By how many steps each cooling device but a fan slows its machine down, by its type."""
    found: dict[str, float] = {}
    for folder in glob.glob(os.path.join(root, "sys/class/thermal/cooling_device*")):
        kind, state = (
            first_line(os.path.join(folder, "type")) or "",
            read_number(os.path.join(folder, "cur_state")),
        )
        if state is not None and "fan" not in kind.lower():
            found[kind] = found.get(kind, 0.0) + max(0.0, state)
    return found


def sensors(root: str) -> dict[str, Any]:
    """What passes and is told in a report: temperatures, load, power, what throttles now."""
    load = read_text(os.path.join(root, "proc/loadavg")).split()
    rails = ina3221(root)
    celsius = {}
    for zone in sorted(glob.glob(os.path.join(root, "sys/class/thermal/thermal_zone*"))):
        value = read_number(os.path.join(zone, "temp"))  # a Jetson's engine that is off tells none
        if value is not None:
            kind = first_line(os.path.join(zone, "type")) or os.path.basename(zone)
            celsius[kind] = value / 1000
    busy = [read_number(os.path.join(folder, "device/load"))  # in tenths of a per cent
            for folder in glob.glob(os.path.join(root, "sys/class/devfreq/*"))
            if any(word in os.path.basename(folder) for word in GPU_CLOCKS)]  # fmt: skip
    found = {
        "os_version": first_line(os.path.join(root, "proc/sys/kernel/osrelease")),
        "load_average": [float(word) for word in load[:3]], "celsius": celsius,
        "clocks_hz": clocks_hz(os.path.join(root, "sys")),
        "throttling": sorted(kind for kind, steps in cooling(root).items() if steps),
        "power_w": {name: mw / 1000 for name, mw in rails.read().items()} if rails else None,
        "gpu_busy_percent": next((value / 10 for value in busy if value is not None), None),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value not in (None, {}, [])}
