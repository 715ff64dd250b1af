"""What a measurement on this machine depends on, and a short hash of it for cache keys."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from kdcompile.core.store import digest
from kdcompile.remote.agent.machine import affinity, cpu_model

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
            found[name] = version(name)
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
