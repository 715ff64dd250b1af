"""Commands under a disk that fails: `faults.c` in a fork server that has the heavy libraries.

As a script it is that server: one JSON job a line on standard input, one answer a line.
"""

import atexit
import ctypes
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "openat", "read", "write", "fsync", "rename", "unlink", "flock", "mkdir", "copy", "stat",
)  # fmt: skip
ERRORS = ("EIO", "ESTALE", "EDQUOT", "ENOSPC", "ENOLCK", "EROFS", "ENOSYS")
LIMIT_S = 300
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fault:
    """A call that fails on the files below a folder: the `first`, or all from it on."""

    call: str
    error: str
    first: int
    lasting: bool


@dataclass(frozen=True)
class Ended:
    """How a command ended: `code` is None where it was still running after the limit."""

    code: int | None
    out: str
    err: str
    failed: int
    seen: dict[str, int]


def compile_faults(folder: Path) -> Path:
    """The library of `faults.c`.

    Raises:
        FileNotFoundError: there is no gcc here.
        subprocess.CalledProcessError: it does not compile, as on another system than Linux.
    """
    library = folder / "faults.so"
    words = ["gcc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"]
    subprocess.run(words, check=True, capture_output=True, text=True)
    return library


class FaultyCommands:
    """Runs `kdcompile` in processes whose files can be made to fail."""

    def __init__(self, library: Path, notes: Path) -> None:
        """`notes` is a folder for what commands say, outside the folders that fail."""
        self._notes = notes
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=environment,
        )  # fmt: skip

    def run(self, folder: Path, words: tuple[str, ...], fault: Fault | None = None) -> Ended:
        """A command in `folder`, which has its HOME, its caches and its temporary files too."""
        job = {"folder": str(folder), "words": words, "notes": str(self._notes)}
        if fault is not None:
            number = getattr(errno, fault.error)
            job["fault"] = CALLS.index(fault.call), number, fault.first, fault.lasting
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        out, err = ((self._notes / n).read_text(errors="replace") for n in ("out", "err"))
        seen = dict(zip(CALLS, answer["seen"], strict=True))
        return Ended(answer["code"], out, err, answer["failed"], seen)

    def close(self) -> None:
        """End the server."""
        self._server.communicate()


def _become(job: dict) -> None:
    """Take the place of a command that was just started."""
    import logging
    import tempfile

    folder = job["folder"]
    os.setsid()
    os.chdir(folder)
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(f"{job['notes']}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(handle, number)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), line_buffering=True)
    sys.__stderr__ = sys.stderr
    tempfile.tempdir = None
    for name, place in (("TMPDIR", "tmp"), ("HOME", "home"), ("KDCOMPILE_CACHE", "cache")):
        os.makedirs(f"{folder}/{place}", exist_ok=True)
        os.environ[name] = f"{folder}/{place}"
    logging.lastResort = None
    sys.argv = ["kdcompile", *job["words"]]


def _child(job: dict, library: ctypes.CDLL) -> None:
    _become(job)
    call, number, first, lasting = job.get("fault", (-1, 0, 0, False))
    library.fault_arm(os.fsencode(job["folder"]), call, number, ctypes.c_long(first), int(lasting))
    from quick_commands import hurry

    from kdcompile.cli import main

    hurry()
    code = 0
    try:
        main()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _waited(child: int) -> int | None:
    """The exit code of a child; None where it did not end and was killed."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def serve() -> None:
    """Run the jobs of standard input, one after the other."""
    del os.environ["LD_PRELOAD"]  # of what commands start themselves
    import warmed  # noqa: F401

    library = ctypes.CDLL(None)
    library.fault_seen.restype = library.fault_failed.restype = ctypes.c_long
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _child(job, library)
        code = _waited(child)
        seen = [library.fault_seen(number) for number in range(len(CALLS))]
        failed = library.fault_failed()
        library.fault_arm(b"", -1, 0, ctypes.c_long(0), 0)  # of the next child's beginning
        answer = {"code": code, "failed": failed, "seen": seen}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    serve()
