"""Facts that a latency depends on, the machine's state at the time, and a fingerprint of both."""

import functools
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdcompile.backends import nvidia_smi
from kdcompile.core.backends import library
from kdcompile.core.store import digest
from kdcompile.remote.agent.machine import affinity, cpu_model
from kdcompile.remote.open import LocalPlace, Place

SMI_FACTS = {
    "gpu_power_limit_w": "power.limit", "gpu_max_clock_mhz": "clocks.max.sm",
    "gpu_application_clock_mhz": "clocks.applications.graphics",
    "gpu_compute_mode": "compute_mode", "gpu_persistence_mode": "persistence_mode",
}  # fmt: skip
SMI_STATE = {
    "gpu_clock_mhz": nvidia_smi.CLOCK, "gpu_memory_clock_mhz": "clocks.mem",
    "gpu_throttling": nvidia_smi.FLAGS, "gpu_celsius": "temperature.gpu",
    "gpu_power_w": "power.draw", "gpu_busy_percent": "utilization.gpu",
}  # fmt: skip
SIGNALS = ("load_average", "celsius", "clocks_hz", "throttling", "power_w", "gpu_busy_percent",
           "cpu_hz", "gpu_hz", "os_version")  # fmt: skip


def look(place: Place, *, ask: nvidia_smi.Ask = nvidia_smi.ask) -> dict[str, Any]:
    """The environment of a measurement at a place, as its worker tells it.

    Of an NVIDIA GPU of this machine nvidia-smi tells more.

    Args:
        place: open; its worker has said hello.
        ask: what stands for nvidia-smi.

    Returns:
        `{"facts": {...}, "state": {...}}`, plain JSON values. Facts stay put, and versions end in
        `_version`; state is clocks, temperatures, throttling and other load at this moment. What
        nothing tells is None among the facts, and absent from the state.
    """
    about = place.about
    facts, state = _facts(about), _state(about, place.call("signals"))
    if isinstance(place, LocalPlace) and about["gpu"] is not None:
        facts |= _gpu_facts(facts, ask)
        state |= _gpu_state(ask)
    return {"facts": facts, "state": state}


def _facts(about: Mapping[str, Any]) -> dict[str, Any]:
    """Of the worker's hello, without the clocks and free memory, which pass."""
    gpu, machine = about["gpu"] or {}, dict(about["machine"])
    driver = machine.pop("driver_version")  # of a GPU that is used
    return {
        "backend": about["backend"],
        f"{library(about['backend'])}_version": about["backend_version"],
        "python_version": about["python"],
        "platform": about["platform"],
        "module": about["module"],
        "power_mode": about["power_mode"],
        "l4t_version": about["l4t"],
        "gpu": gpu.get("name"),
        "compute_capability": gpu.get("compute_capability"),
        **machine,
    } | ({"driver_version": driver} if gpu else {})


def _state(about: Mapping[str, Any], signals: Mapping[str, Any]) -> dict[str, Any]:
    gpu, memory = about["gpu"] or {}, about["memory_mb"]
    told = {
        "numpy_version": about["numpy"],
        "memory_mb": memory["total"],  # some MB come and go with a kernel's update
        "free_memory_mb": memory["free"],
        "gpu_free_mb": gpu.get("free_mb"),
        **{key: signals.get(key) for key in SIGNALS},
    }
    return {key: value for key, value in told.items() if value is not None}


def _gpu_facts(known: Mapping[str, Any], ask: nvidia_smi.Ask) -> dict[str, Any]:
    """Of nvidia-smi; where it tells none, what the worker knows by NVML and the driver's file."""
    told = nvidia_smi.query(list(SMI_FACTS.values()), ask)
    version = known["driver_version"] or nvidia_smi.query(["driver_version"], ask).get(
        "driver_version"
    )
    return {"driver_version": version} | {
        key: told.get(field, known.get(key)) for key, field in SMI_FACTS.items()
    }


def _gpu_state(ask: nvidia_smi.Ask) -> dict[str, Any]:
    told = nvidia_smi.query(list(SMI_STATE.values()), ask)
    state: dict[str, Any] = {key: told[f] for key, f in SMI_STATE.items() if f in told}
    if "gpu_throttling" in state:
        state["gpu_throttling"] = nvidia_smi.throttles(state["gpu_throttling"])
    others = nvidia_smi.processes(ask)
    # ids are the host's where this is a container: the worker's own cannot be told apart
    return state if others is None else state | {"gpu_processes": len(others)}


# the distributions that run or time a network; an absent one is left out
LIBRARIES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "scipy",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "triton",
)
ID_CHARS = 12
_version = functools.cache(version)  # a process goes on with what it has imported


def fingerprint() -> dict[str, Any]:
    """This machine and its libraries, as plain JSON values.

    Only what stays put between two runs: no load, clock, temperature or free memory. Libraries
    are read from their installed metadata, never imported.
    """
    return {
        "cpu": cpu(),
        "cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "gpus": _gpus(),
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libraries": versions(LIBRARIES),
    }


def fingerprint_id() -> str:
    """A stable short hash of `fingerprint`, 12 hex digits."""
    return digest(fingerprint())[:ID_CHARS]


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions by distribution name; those that are not installed are absent."""
    found = {}
    for name in names:
        try:
            found[name] = _version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu() -> str:
    """The processor's model; boards without a model name give their device-tree model."""
    return cpu_model("/")


def usable_cores() -> int:
    """Cores that this process may run on: a pinned run is another measurement."""
    return len(affinity())


def _gpus() -> list[str]:
    """NVIDIA GPUs by model, as the driver lists them; empty without the driver."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                names.append(value.strip())
    return names
