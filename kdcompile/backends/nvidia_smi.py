"""Query `nvidia-smi` for a GPU's facts and state; a Jetson's clocks are in `/sys` instead."""

import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from statistics import median
from threading import Thread

PERIOD_MS = 50
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


class Stream:
    """Clock and throttle flags every 50 ms while it is open, from one nvidia-smi that goes on."""

    def __init__(
        self, lines: Iterable[str] | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`lines` stands for what nvidia-smi prints."""
        self._clock, self._process = clock, None
        self._seen: deque[tuple[float, float, tuple[str, ...]]] = deque(maxlen=1000)
        if lines is None:
            options = [f"--query-gpu={CLOCK},{FLAGS}", "-lms", str(PERIOD_MS)]
            self._process = subprocess.Popen(
                command(options), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            assert self._process.stdout is not None, "it is a pipe"
            lines = self._process.stdout
        self._thread = Thread(target=self._listen, args=(lines,), daemon=True)
        self._thread.start()

    def _listen(self, lines: Iterable[str]) -> None:
        for line in lines:
            values = [word.strip() for word in line.split(",")]
            with suppress(ValueError, IndexError):  # "[N/A]", or a message of the driver
                entry = (self._clock(), float(values[0]) * 1e6, tuple(throttles(values[1])))
                self._seen.append(entry)

    def since(self, moment: float) -> tuple[float, set[str]] | None:
        """The median clock in Hz and all throttle reasons since then, or at the last look."""
        entries = list(self._seen)
        recent = [entry for entry in entries if entry[0] >= moment] or entries[-1:]
        if not recent:
            return None
        return median(hz for _, hz, _ in recent), {word for *_, words in recent for word in words}

    def close(self) -> None:
        """End nvidia-smi."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._thread.join(5.0)
            assert self._process.stdout is not None, "it is a pipe"
            self._process.stdout.close()
