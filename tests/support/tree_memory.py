"""The most memory that a command takes together with the processes that it starts."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

EVERY_S = 0.05
MIB = 1 << 20


@dataclass(frozen=True)
class Ran:
    """A command that ended.

    Args:
        code: its exit code.
        out: its standard output.
        err: its standard error.
        peak_mb: the most that it and its descendants had resident at one look, in MiB; pages of
            several processes count once (PSS).
        cpu_s: seconds of CPU of it and of the descendants that it waited for.
        wall_s: seconds by the clock.
    """

    code: int
    out: str
    err: str
    peak_mb: float
    cpu_s: float
    wall_s: float


def kdcompile(folder: Path, *words: object) -> Ran:
    """`kdcompile` with these words in a folder."""
    return ran(folder, [sys.executable, "-P", "-m", "kdcompile", *map(str, words)])


def ran(folder: Path, words: Sequence[str]) -> Ran:
    """A command in a folder, looked at every 50 ms while it runs."""
    out, err = folder / ".out.txt", folder / ".err.txt"
    began, peak = time.monotonic(), 0
    with out.open("wb") as told, err.open("wb") as said:
        process = subprocess.Popen(words, cwd=folder, stdout=told, stderr=said)
        while True:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, sum(_bytes(pid) for pid in descendants(process.pid)))
            time.sleep(EVERY_S)
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
    return Ran(
        process.returncode, out.read_text(errors="replace"), err.read_text(errors="replace"),
        max(peak / MIB, used.ru_maxrss / 1024), used.ru_utime + used.ru_stime,
        time.monotonic() - began,
    )  # fmt: skip


def descendants(pid: int) -> list[int]:
    """A process and all below it; those that ended meanwhile have none."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def _bytes(pid: int) -> int:
    """What a process has resident, its share of shared pages; 0 of one that is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
