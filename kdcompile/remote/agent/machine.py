"""Facts of a machine that latency depends on: processor, clocks and their limits, memory, disk."""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
import subprocess
from typing import Any

from kdcompile.remote.agent.system import MIB, first_line, read_number, read_text

CPU = "sys/devices/system/cpu"
CPU_LIMITS = {"governor": "scaling_governor", "cpu_min_hz": "scaling_min_freq",
              "cpu_max_hz": "scaling_max_freq"}  # fmt: skip
DEVFREQ_LIMITS = {"governor": "governor", "min_hz": "min_freq", "max_hz": "max_freq"}
GPU_CLOCKS = ("gpu", "gv11b", "gp10b", "ga10b", "gb10b")  # in names of a Jetson's devfreq
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # what libraries take their threads from


def power_mode() -> str | None:
    """The Jetson's power mode, as nvpmodel words it; None where there is no nvpmodel."""
    if shutil.which("nvpmodel") is None:
        return None
    try:
        asked = subprocess.run(["nvpmodel", "-q"], capture_output=True, check=False, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return " ".join((asked.stdout + asked.stderr).decode(errors="replace").split())


def affinity() -> list[int]:
    """The CPUs that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def facts(root: str) -> dict[str, Any]:
    """What a machine is set to and latency depends on; None where nothing tells.

    Of several values among the CPUs in use, such as those of two clusters, each is told once.
    `clock_limits` are those of a Jetson's GPU, memory and engines, by devfreq and by nvpmodel.
    """
    cpus, limits = affinity(), {}
    for name, file in CPU_LIMITS.items():
        told = [first_line(os.path.join(root, CPU, f"cpu{n}", "cpufreq", file)) for n in cpus]
        found = sorted({_setting(text, 1000) for text in told if text}, key=str)
        limits[name] = found[0] if len(found) == 1 else found or None
    driver = read_text(os.path.join(root, "proc/driver/nvidia/version"))
    version = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)*)\s", driver)
    return {
        "cpu": cpu_model(root), "cores": _online(root), "usable_cores": len(cpus),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ} or None,
        "cpu_boost": _boost(root), "clock_limits": _clock_limits(root) or None,
        "cpu_quota": read_text(os.path.join(root, "sys/fs/cgroup/cpu.max")) or None,
        "driver_version": version[1] if version else None, **limits,
    }  # fmt: skip


def cpu_model(root: str) -> str:
    """The processor's model; a board without a model name gives its device-tree model."""
    info = re.search(
        r"^model name\s*:\s*(.+)$", read_text(os.path.join(root, "proc/cpuinfo")), re.M
    )
    board = first_line(os.path.join(root, "proc/device-tree/model"))
    return (info[1].strip() if info else board) or platform.processor() or platform.machine()


def _online(root: str) -> int:
    """How many CPUs are on; nvpmodel turns some off."""
    text = read_text(os.path.join(root, CPU, "online"))
    spans = [[int(n) for n in span.split("-")] for span in re.findall(r"\d+(?:-\d+)?", text)]
    return sum(span[-1] - span[0] + 1 for span in spans) or os.cpu_count() or 1


def _setting(text: str, unit: int) -> int | str:
    """A clock in Hz, or the word that stands for one."""
    return int(text) * unit if text.isdigit() else text


def _boost(root: str) -> bool | None:
    """Whether a CPU may exceed its nominal clock."""
    no_turbo = read_number(os.path.join(root, CPU, "intel_pstate/no_turbo"))
    if no_turbo is not None:
        return no_turbo == 0
    boost = read_number(os.path.join(root, CPU, "cpufreq/boost"))
    return None if boost is None else boost == 1


def _clock_limits(root: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder in sorted(glob.glob(os.path.join(root, "sys/class/devfreq/*"))):
        told = {k: first_line(os.path.join(folder, file)) for k, file in DEVFREQ_LIMITS.items()}
        found[os.path.basename(folder)] = {k: _setting(v, 1) for k, v in told.items() if v}
    for path in sorted(glob.glob(os.path.join(root, "sys/kernel/nvpmodel_*cap/*"))):
        text = first_line(path)  # of the memory and the DLA, which have no devfreq
        if text:
            found[f"nvpmodel.{os.path.basename(path)}"] = _setting(text, 1)
    return {name: value for name, value in found.items() if value != {}}


def clocks_hz(root: str = "/sys") -> dict[str, int]:
    """Frequencies in Hz by name: a Jetson's GPU and memory by devfreq, any machine's CPUs."""
    found = {}
    for pattern, name_at, unit in (
        ("class/devfreq/*/cur_freq", -2, 1),
        ("devices/system/cpu/cpufreq/policy*/scaling_cur_freq", -2, 1000),
    ):
        for path in sorted(glob.glob(os.path.join(root, pattern))):
            text = first_line(path) or ""
            if text.isdigit():
                found[path.split(os.sep)[name_at]] = int(text) * unit
    return found


def memory_mb(path: str = "/proc/meminfo") -> dict[str, int | None]:
    """Total and free memory of the machine in MiB; a Jetson's GPU uses the same."""
    found: dict[str, int | None] = {"total": None, "free": None}
    try:
        with open(path) as stream:
            lines = dict(line.split(":", 1) for line in stream if ":" in line)
        for name, key in (("total", "MemTotal"), ("free", "MemAvailable")):
            found[name] = int(lines[key].split()[0]) // 1024
    except (OSError, KeyError, ValueError):
        pass
    return found


def free_disk_mb() -> int | None:
    """Free MiB of the disk of the current folder; None where the system does not say."""
    try:
        return shutil.disk_usage(os.getcwd()).free // MIB
    except OSError:
        return None


def process_sizes_mb(path: str) -> tuple[float | None, float | None]:
    """Resident size of a process and its peak in MiB, of its `status`."""
    found = dict(re.findall(r"^Vm(RSS|HWM):\s*(\d+) kB", read_text(path), re.M))
    resident, peak = (float(found[k]) / 1024 if k in found else None for k in ("RSS", "HWM"))
    return resident, peak
