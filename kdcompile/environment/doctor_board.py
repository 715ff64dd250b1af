"""Checks of a board, or of another interpreter: what it can build, run and measure."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.environment.doctor import LEAST_DISK_GB, Check
from kdcompile.targets import load, names

LEAST_MEMORY_MB = 1024
FREE_MEMORY = "stop what else runs there; on a Jetson: sudo systemctl isolate multi-user.target"
# what a worker finds first to last: an error at one of them says that those before it are there
ORDER = ("reachable", "python", "numpy", "backend", "GPU")
STOPPED_AT = {
    "via-python": "python",
    "python-missing": "python",
    "python-old": "python",
    "numpy-missing": "numpy",
    "tensorrt-missing": "backend",
    "tensorrt-too-old": "backend",
    "onnxruntime-missing": "backend",
    "cuda-missing": "GPU",
    "cuda-error": "GPU",
}


class Greeted(Protocol):
    """A place whose worker has answered `hello`."""

    label: str
    about: dict[str, Any]

    def put(self, local: Path) -> str:
        """Where the file then lies there."""


def examine_board(
    opened: Callable[[], AbstractContextManager[Greeted]], backend: str
) -> list[Check]:
    """Look at a place; one that stops the look is the last and an error.

    Args:
        opened: opens the place.
        backend: what should run networks there.

    Raises:
        KDError: `via-invalid`, which is no finding about a board.
    """
    try:
        with opened() as place:
            label, about, copies = place.label, place.about, _copies(place)
    except KDError as error:
        if error.code == "via-invalid":
            raise
        return _stopped(error, backend)
    return [
        Check("reachable", "ok", label),
        copies,
        Check("python", "ok", about["python"]),
        Check("numpy", "ok", about["numpy"]),
        Check(backend, "ok", about["backend_version"]),
        _gpu(about["gpu"], backend),
        Check("module", "ok", about["module"] or f"{about['platform']}, not a Jetson"),
        _jetpack(about["l4t"]),
        _power_mode(about),
        _clocks(about),
        _memory(about["memory_mb"]),
        _disk(about["disk_mb"]),
    ]


def _copies(place: Greeted) -> Check:
    """Whether a file gets there, for which SSH needs sftp."""
    with scratch() as folder:
        sample = folder / "sample"
        sample.write_text("kdcompile doctor\n", encoding="utf-8")
        try:
            return Check("copies", "ok", f"a file lies at {place.put(sample)}")
        except KDError as error:
            return Check("copies", "error", error.message, error.fix)


def jetpack_of(l4t: str) -> str:
    """The JetPack of an L4T version such as `36.4.3`, from the targets' tables, in words."""
    known = dict(sorted(_jetpacks(), key=lambda pair: _numbers(pair[0])))
    if l4t in known:
        return f"JetPack {known[l4t]}"
    older = [v for v in known if _numbers(v)[0] == _numbers(l4t)[0] and _numbers(v) < _numbers(l4t)]
    if older:
        return f"JetPack {known[older[-1]]} or later"
    return "a JetPack that no target names"


def _jetpacks() -> list[tuple[str, str]]:
    """(L4T, JetPack) of every target."""
    boards = [load(name) for name in names()]
    found = [load(f"{board.name}@jp{jetpack}") for board in boards for jetpack in board.jetpacks]
    return [(board.l4t, board.jetpack) for board in found if board.l4t and board.jetpack]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _stopped(error: KDError, backend: str) -> list[Check]:
    """What was found before the error, and the error."""
    at = STOPPED_AT.get(error.code, "reachable")
    before = [Check(name, "ok", "yes") for name in ORDER[: ORDER.index(at)]]
    broken = Check(at, "error", f"{error.code}: {error.message}", error.fix)
    return [_named(check, backend) for check in (*before, broken)]


def _named(check: Check, backend: str) -> Check:
    name = backend if check.name == "backend" else check.name
    return Check(name, check.status, check.detail, check.fix)


def _gpu(gpu: Mapping[str, Any] | None, backend: str) -> Check:
    if gpu is None:
        return Check("GPU", "missing", f"{backend} uses none; what it measures proves no board")
    memory = f", {gpu['memory_mb']} MiB" if gpu.get("memory_mb") else ""
    detail = f"{gpu['name']}, compute capability {gpu['compute_capability']}{memory}"
    return Check("GPU", "ok", detail)


def _jetpack(release: str | None) -> Check:
    """From the first line of `/etc/nv_tegra_release`."""
    if release is None:
        return Check("JetPack", "ok", "none, not a Jetson")
    found = re.search(r"R(\d+) .*REVISION: (\d+(?:\.\d+)*)", release)
    if found is None:
        return Check("JetPack", "warning", f"not known from {release!r}", "see apt show jetson-l4t")
    l4t = f"{found[1]}.{found[2]}"
    return Check("JetPack", "ok", f"{jetpack_of(l4t)} (L4T {l4t})")


def _power_mode(about: Mapping[str, Any]) -> Check:
    if about["power_mode"]:
        return Check("power mode", "ok", about["power_mode"])
    if about["l4t"] is None:
        return Check("power mode", "ok", "none to choose")
    fix = "sudo apt install nvidia-l4t-nvpmodel, then nvpmodel -q"
    return Check("power mode", "warning", "nvpmodel does not say", fix)


def _clocks(about: Mapping[str, Any]) -> Check:
    clocks = about["clocks"]
    if clocks:
        shown = ", ".join(f"{name} {hz / 1e6:.0f} MHz" for name, hz in sorted(clocks.items()))
        return Check("clocks", "ok", shown)
    if about["l4t"] is None and about["gpu"] is None:
        return Check("clocks", "ok", "none of a GPU")
    how = "sudo jetson_clocks" if about["l4t"] else "sudo nvidia-smi --lock-gpu-clocks=MHZ"
    fix = f"{how} there fixes them; latency measured without that varies"
    return Check("clocks", "warning", "not readable", fix)


def _memory(memory: Mapping[str, Any]) -> Check:
    free, total = memory["free"], memory["total"]
    if free is None:
        return Check("memory", "warning", "not readable", "see free -m there")
    detail = f"{free} of {total} MiB free"
    if free < LEAST_MEMORY_MB:
        return Check("memory", "warning", f"{detail}; a build takes about 1 GiB", FREE_MEMORY)
    return Check("memory", "ok", detail)


def _disk(free_mb: float | None) -> Check:
    if free_mb is None:
        return Check("disk", "warning", "not readable", "see df -h there")
    detail = f"{free_mb / 1024:.1f} GiB free"
    if free_mb < LEAST_DISK_GB * 1e9 / (1 << 20):
        fix = "free some: du -sh ~/.cache/kdcompile there says how much kdcompile's copies take"
        return Check("disk", "warning", detail, fix)
    return Check("disk", "ok", detail)
