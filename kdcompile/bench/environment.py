"""What a latency depends on: facts that a comparison must hold equal, and the state that passes."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdcompile.backends.via import Place
from kdcompile.backends.via_local import LocalPlace
from kdcompile.bench import nvidia
from kdcompile.bench.machine import cpu, usable_cores
from kdcompile.bench.signals import celsius, cpu_hz, gpu_hz, number_of, text_of

CPU = "sys/devices/system/cpu"
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # what libraries take their threads from
SMI_FACTS = {
    "gpu_power_limit_w": "power.limit", "gpu_max_clock_mhz": "clocks.max.sm",
    "gpu_application_clock_mhz": "clocks.applications.graphics",
    "gpu_compute_mode": "compute_mode", "gpu_persistence_mode": "persistence_mode",
}  # fmt: skip
SMI_STATE = {
    "gpu_clock_mhz": nvidia.CLOCK, "gpu_memory_clock_mhz": "clocks.mem",
    "gpu_throttling": nvidia.FLAGS, "gpu_celsius": "temperature.gpu",
    "gpu_power_w": "power.draw", "gpu_busy_percent": "utilization.gpu",
}  # fmt: skip


def look(place: Place, *, root: Path = Path("/"), ask: nvidia.Ask = nvidia.ask) -> dict[str, Any]:
    """The environment of a measurement at a place.

    Over SSH it is what the worker's hello tells; of this machine, more.

    Args:
        place: open; its worker has said hello.
        root: what stands for `/`.
        ask: what stands for nvidia-smi.

    Returns:
        `{"facts": {...}, "state": {...}}`, plain JSON values. Facts stay put, and versions end in
        `_version`; state is clocks, temperatures, throttling and other load at this moment. What
        nothing tells is None among the facts, and absent from the state.
    """
    about = place.about
    facts, state = _facts_told(about), _state_told(about)
    if isinstance(place, LocalPlace):
        facts |= _facts_here(root)
        state |= _state_here(root)
        if about["gpu"] is not None:
            facts |= _gpu_facts(root, ask)
            state |= _gpu_state(ask)
    return {"facts": facts, "state": state}


def _facts_told(about: Mapping[str, Any]) -> dict[str, Any]:
    """Of the worker's hello: its clocks and free memory pass."""
    library = "tensorrt" if about["backend"] == "tensorrt" else "onnxruntime"
    gpu = about["gpu"] or {}
    return {
        "backend": about["backend"],
        f"{library}_version": about["backend_version"],
        "python_version": about["python"],
        "platform": about["platform"],
        "module": about["module"],
        "power_mode": about["power_mode"],
        "l4t_version": about["l4t"],
        "gpu": gpu.get("name"),
        "compute_capability": gpu.get("compute_capability"),
    }


def _state_told(about: Mapping[str, Any]) -> dict[str, Any]:
    gpu, memory = about["gpu"] or {}, about["memory_mb"]
    told = {
        "numpy_version": about["numpy"],
        "clocks_hz": about["clocks"],
        "memory_mb": memory["total"],  # some MB come and go with a kernel's update
        "free_memory_mb": memory["free"],
        "gpu_free_mb": gpu.get("free_mb"),
    }
    return {key: value for key, value in told.items() if value not in (None, {})}


def _facts_here(root: Path) -> dict[str, Any]:
    cpus = _affinity()
    first = root / CPU / f"cpu{min(cpus, default=0)}" / "cpufreq"
    return {
        "cpu": cpu(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "threads": {name: os.environ[name] for name in THREADS if name in os.environ} or None,
        "governor": text_of(first / "scaling_governor") or None,
        "cpu_max_hz": _hz(first / "scaling_max_freq"),
        "cpu_boost": _boost(root),
        "cpu_quota": text_of(root / "sys/fs/cgroup/cpu.max") or None,
    }


def _state_here(root: Path) -> dict[str, Any]:
    words = text_of(root / "proc/loadavg").split()
    told = {
        "os_version": text_of(root / "proc/sys/kernel/osrelease") or None,
        "load_average": [float(word) for word in words[:3]] or None,
        "cpu_hz": cpu_hz(root, _affinity()),
        "gpu_hz": gpu_hz(root),
        "celsius": celsius(root) or None,
    }
    return {key: value for key, value in told.items() if value is not None}


def _gpu_facts(root: Path, ask: nvidia.Ask) -> dict[str, Any]:
    text = text_of(root / "proc/driver/nvidia/version")
    version = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)*)\s", text)
    told = nvidia.query(list(SMI_FACTS.values()), ask)
    driver = version[1] if version else nvidia.query(["driver_version"], ask).get("driver_version")
    return {"driver_version": driver} | {key: told.get(f) for key, f in SMI_FACTS.items()}


def _gpu_state(ask: nvidia.Ask) -> dict[str, Any]:
    told = nvidia.query(list(SMI_STATE.values()), ask)
    state: dict[str, Any] = {key: told[f] for key, f in SMI_STATE.items() if f in told}
    if "gpu_throttling" in state:
        state["gpu_throttling"] = nvidia.throttles(state["gpu_throttling"])
    others = nvidia.processes(ask)
    # ids are the host's where this is a container: the worker's own cannot be told apart
    return state if others is None else state | {"gpu_processes": len(others)}


def _boost(root: Path) -> bool | None:
    """Whether a CPU may exceed its nominal clock."""
    no_turbo = number_of(root / CPU / "intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == 0
    boost = number_of(root / CPU / "cpufreq/boost")
    return None if boost is None else boost == 1


def _hz(path: Path) -> int | None:
    khz = number_of(path)
    return None if khz is None else int(1000 * khz)


def _affinity() -> set[int]:
    if not hasattr(os, "sched_getaffinity"):
        return set(range(os.cpu_count() or 1))
    return os.sched_getaffinity(0)
