"""Checks of this machine: what it can build, run and measure, and how to install the rest."""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdcompile import __version__
from kdcompile.core.errors import EXIT_MISSING, EXIT_OK
from kdcompile.core.optional import silence

Status = Literal["ok", "missing", "warning", "error"]

PURPOSE = {
    "click": "the command line",
    "filelock": "the artifact store",
    "jinja2": "the HTML report",
    "packaging": "the list of software in a bundle",
    "markupsafe": "escaped text in the HTML report",
    "matplotlib": "the report's charts",
    "numpy": "arrays",
    "onnx": "export",
    "onnxscript": "export from PyTorch",
    "onnxslim": "simplifying the exported network",
    "pillow": "reading photos",
    "pydantic": "the spec",
    "rich": "progress and tables",
    "safetensors": "weights",
    "scipy": "densities and statistics",
    "torch": "teacher, student and training",
}
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu")
TEGRA = Path("/etc/nv_tegra_release")
LEAST_PYTHON = (3, 11)
LEAST_DISK_GB = 2.0


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    `missing` is absent and not needed for a build to ONNX or a build kit; `warning` works but
    deserves a look; `error` stops such a build.
    """

    name: str
    status: Status
    detail: str
    fix: str = ""


def examine() -> list[Check]:
    """Look at everything; takes seconds, because it imports torch."""
    return [
        _python(),
        *_libraries(),
        _onnxruntime(),
        _torch_devices(),
        _driver(),
        _optional("triton", "fused losses on the GPU", "pip install 'kdcompile[gpu]' (Linux)"),
        _optional(
            "tensorrt",
            "engines for this machine's GPU",
            "pip install 'kdcompile[gpu]'; on a Jetson it comes with JetPack "
            "(sudo apt install python3-libnvinfer)",
        ),
        _optional(
            "tensorrt-rtx",
            "compile checks without a GPU, engines for RTX GPUs",
            "pip install 'kdcompile[rtx]'",
        ),
        _optional(
            "openvino",
            "networks on an Intel CPU (--target intel-cpu)",
            "pip install 'kdcompile[openvino]'",
        ),
        _jetson(),
        _disk(),
    ]


def exit_code(checks: Sequence[Check]) -> int:
    """0 when a build to ONNX or a build kit is possible here, else 4."""
    return EXIT_MISSING if any(check.status == "error" for check in checks) else EXIT_OK


def version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    detail = f"{found} ({sys.executable})"
    if sys.version_info < LEAST_PYTHON:
        least = ".".join(map(str, LEAST_PYTHON))
        return Check("python", "error", detail, f"use Python {least} or newer")
    return Check("python", "ok", detail)


def _libraries() -> list[Check]:
    """kdcompile and every library that it requires, against the least version."""
    try:
        requirements = importlib.metadata.requires("kdcompile") or []
    except importlib.metadata.PackageNotFoundError:
        fix = "pip install -e . in the repository"
        return [Check("kdcompile", "error", f"{__version__}, not installed", fix)]
    checks = [Check("kdcompile", "ok", __version__)]
    for requirement in requirements:
        if ";" not in requirement:  # a marker names an extra or another system
            name, least = _parsed(requirement)
            checks.append(_library(name, least))
    return checks


def _parsed(requirement: str) -> tuple[str, str]:
    """`name>=1.2` as ("name", "1.2"); without a version the second is "0"."""
    match = re.match(r"([\w.-]+)\s*(?:>=\s*([\d.]+))?", requirement)
    assert match is not None, f"a requirement starts with a name: {requirement}"
    return match[1].lower(), match[2] or "0"


def _library(name: str, least: str) -> Check:
    purpose = PURPOSE.get(name, "needed")
    found = version(name)
    fix = f"pip install '{name}>={least}'"
    if found is None:
        return Check(name, "error", f"absent; for {purpose}", fix)
    if _numbers(found) < _numbers(least):
        return Check(name, "error", f"{found} is older than {least}; for {purpose}", fix)
    return Check(name, "ok", f"{found}, for {purpose}")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: (2, 13, 0) of "2.13.0+cpu"."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


def _onnxruntime() -> Check:
    found = {name: version(name) for name in ONNXRUNTIMES}
    installed = {name: value for name, value in found.items() if value is not None}
    detail = ", ".join(f"{name} {value}" for name, value in installed.items())
    if len(installed) > 1:
        return Check(
            "onnxruntime",
            "error",
            f"{detail}: they overwrite each other's files, keep one",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'kdcompile[gpu]'",
        )
    if not installed:
        fix = "pip install 'kdcompile[cpu]', or 'kdcompile[gpu]' with an NVIDIA GPU"
        return Check("onnxruntime", "error", "absent; for running and measuring networks", fix)
    try:
        silence()
        import onnxruntime

        providers = ", ".join(onnxruntime.get_available_providers())
    except (ImportError, AttributeError) as error:  # half of it was uninstalled with the other one
        (name,) = installed
        fix = f"pip install --force-reinstall --no-deps {name}"
        return Check("onnxruntime", "error", f"{detail} does not import: {error}", fix)
    return Check("onnxruntime", "ok", f"{detail}, with {providers}")


def _torch_devices() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: its own shared libraries do not load
        fix = "pip install --force-reinstall torch"
        return Check("torch devices", "error", f"torch does not import: {error}", fix)
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        return Check("torch devices", "ok", f"CPU only (built with {built})")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("torch devices", "ok", f"CUDA {torch.version.cuda}: {', '.join(names)}")


def _driver() -> Check:
    program = shutil.which("nvidia-smi")
    if program is None:
        return Check("NVIDIA driver", "missing", "no nvidia-smi; needed only for a GPU here")
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        fix = "reinstall the driver, or reboot after its update"
        return Check("NVIDIA driver", "warning", f"nvidia-smi fails: {error}", fix)
    return Check("NVIDIA driver", "ok", "; ".join(done.stdout.strip().splitlines()))


def _optional(distribution: str, purpose: str, fix: str) -> Check:
    found = version(distribution)
    if found is not None:
        return Check(distribution, "ok", f"{found}, for {purpose}")
    if importlib.util.find_spec(distribution.replace("-", "_")) is not None:
        return Check(distribution, "ok", f"version not recorded, for {purpose}")
    return Check(distribution, "missing", f"for {purpose}", fix)


def _jetson() -> Check:
    if not TEGRA.is_file():
        return Check("Jetson", "ok", "this is not a Jetson: its gates stay pending here")
    first = TEGRA.read_text(encoding="utf-8", errors="replace").splitlines()[:1]
    return Check("Jetson", "ok", f"this is a Jetson: {' '.join(first)}")


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    detail = f"{free:.1f} GB free in {Path.cwd()}"
    if free < LEAST_DISK_GB:
        return Check("disk", "warning", detail, "free some, or kdcompile clean")
    return Check("disk", "ok", detail)
