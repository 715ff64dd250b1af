"""Query `nvidia-smi` for a GPU's facts and state; a Jetson's clocks are in `/sys` instead."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence

FLAGS = "clocks_throttle_reasons.active"  # newer drivers take this name too
CLOCK = "clocks.sm"
REASONS = {
    0x04: "power limit", 0x08: "hardware slow-down", 0x20: "temperature",
    0x40: "temperature (hardware)", 0x80: "power brake",
}  # fmt: skip
Ask = Callable[[Sequence[str]], str]


def command(options: Sequence[str]) -> list[str]:
    """nvidia-smi for the GPU that CUDA calls the first: a loop would print all of them."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    return ["nvidia-smi", f"--id={first or '0'}", "--format=csv,noheader,nounits", *options]


def ask(options: Sequence[str]) -> str:
    """What it prints; empty where it is absent or fails."""
    if shutil.which("nvidia-smi") is None:
        return ""
    try:
        found = subprocess.run(
            command(options), capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout if found.returncode == 0 else ""


def query(fields: Sequence[str], ask_: Ask = ask) -> dict[str, str]:
    """Values by field; those that this GPU or this driver does not tell are absent."""
    line = (ask_([f"--query-gpu={','.join(fields)}"]).splitlines() or [""])[0]
    values = [value.strip() for value in line.split(",")]
    if len(values) == len(fields):
        return {f: v for f, v in zip(fields, values, strict=True) if v and not v.startswith("[")}
    if len(fields) == 1:
        return {}
    # one field that a driver does not know makes it refuse all
    return {f: v for field in fields for f, v in query([field], ask_).items()}


def processes(ask_: Ask = ask) -> list[int] | None:
    """Ids of the processes that compute on the GPU; None where nothing tells."""
    if not query(["uuid"], ask_):
        return None
    lines = ask_(["--query-compute-apps=pid"]).split()
    return [int(word) for word in lines if word.isdigit()]


def throttles(flags: str | int) -> list[str]:
    """The words for the reasons in a mask such as `0x0000000000000020`."""
    try:
        mask = flags if isinstance(flags, int) else int(flags, 16)
    except ValueError:
        return []
    return [word for bit, word in REASONS.items() if mask & bit]
