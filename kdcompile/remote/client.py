"""A device with a worker: it is asked, files are put there and fetched, networks run there."""

import math
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, scratch
from kdcompile.core.ports import Ports
from kdcompile.remote import answers
from kdcompile.remote.agent.messages import MOST_BYTES
from kdcompile.remote.archive import agent_zip
from kdcompile.remote.bounded import MOST_ARRAYS, MOST_FILE, Unbounded
from kdcompile.remote.errors import (
    bad_answer,
    disk_full,
    file_absent,
    file_differs,
    not_plain,
    stopped,
    timed_out,
    worker_died,
    worker_error,
)
from kdcompile.remote.process import BadAnswer, Gone, WorkerProcess

BOOTSTRAP = Path(__file__).with_name("bootstrap.py")
START_S = 60.0
TIMEOUT_S = 600.0
BUILD_S = 7200.0  # a board with little memory takes long for one engine
MIB = 1 << 20
RESERVE_MB = 16  # left free: a file system that is full to the last block harms its owner
PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
Arrays = Mapping[str, NDArray[Any]]


class Place(ABC):
    """Where a worker runs; a context manager that ends it.

    Its work folder, `~/.cache/kdcompile` there (or `$KDCOMPILE_CACHE`), outlives it: `blobs/` has
    files by their SHA-256, so that a file is copied once.

    Args:
        label: how errors and reports call it; never with a secret.
        command: starts the first lines of `bootstrap` there, which read standard input.
        source: a zip file with the program that they run; None for the agent.
    """

    def __init__(self, label: str, command: Sequence[str], source: bytes | None = None) -> None:
        self._source = agent_zip() if source is None else source
        self.label, self.about, self.work = label, dict[str, Any](), ""
        self.ports: Ports | None = None  # the inputs of networks that run on rows, set by its user
        self._lost: KDError | None = None
        self._token = secrets.token_hex(4)
        self._inputs_sha256 = ""
        self._worker = WorkerProcess(command)
        try:
            self._start()
        except BaseException:
            self._worker.close(at_once=True)
            raise

    def _start(self) -> None:
        self._worker.send(boot_source())
        try:
            answer = self._worker.answer(START_S)
        except Gone as gone:
            raise self._not_started(gone) from None
        except TimeoutError:
            raise timed_out(self.label, "start", START_S) from None
        except BadAnswer as bad:
            raise bad_answer(self.label, "start", bad) from None
        self.work = str(self._read("start", answer)["work"])
        self._worker.forget_errors()
        self._worker.send(self._source)
        self.about = self.call("hello")

    def call(self, op: str, timeout_s: float | None = None, **values: Any) -> dict[str, Any]:
        """One operation of the worker.

        Args:
            op: hello, stat, build, load, run, time, ...
            timeout_s: seconds; by default two hours for a build, ten minutes for the others.
            values: the operation's own, as JSON values; paths are paths there.

        Raises:
            KDError: the worker's error with its code, `worker-died`, `worker-timeout`,
                `board-answer`, or over SSH `board-lost`; after one of these four every call raises
                it again.
            ToolMissingError: what the worker needs is not installed there.
        """
        if self._lost is not None:
            raise self._lost
        limit = timeout_s or (BUILD_S if op == "build" else TIMEOUT_S)
        try:
            answer = self._worker.ask({"op": op, **values}, limit)
        except Gone as gone:
            self._lost = self._gone(gone)
            raise self._lost from None
        except TimeoutError:
            self._lost = timed_out(self.label, op, limit)
            raise self._lost from None
        except BadAnswer as bad:
            self._lost = bad_answer(self.label, op, bad)
            raise self._lost from None
        except BaseException:  # Ctrl-C: the late answer would be taken for the next one
            self._lost = stopped(self.label, op)
            self._worker.close(at_once=True)
            raise
        return self._read(op, answer, samples=bool(values.get("samples")))

    def _read(self, op: str, answer: Mapping[str, Any], *, samples: bool = False) -> dict[str, Any]:
        """What an answer says, once it is one."""
        try:
            if "error" not in answer:
                return answers.checked(op, answer["ok"], samples=samples)
            told = answers.failure(answer["error"])
        except BadAnswer as bad:
            raise self.refuse(op, bad) from None
        raise worker_error(told, self.label)

    def refuse(self, op: str, bad: Exception) -> KDError:
        """End a worker that is none; the error, which every later call raises."""
        self._lost = bad_answer(self.label, op, bad)
        self._worker.close(at_once=True)
        return self._lost

    def path(self, name: str) -> str:
        """The path there of a plain file name in the work folder.

        Raises:
            KDError: `via-path`, anything but letters, digits and `._-`, or a leading dot or dash.
        """
        if not name or not set(name) <= PLAIN or name[0] in ".-":
            raise not_plain(name)
        return str(PurePosixPath(self.work) / name)

    def put(self, local: Path) -> str:
        """The path there of a file with this content, which is copied where it is not yet.

        Raises:
            KDError: `board-disk-full`, `copy-failed`, `board-lost`; what was copied is kept, and
                the same call goes on from there.
        """
        sha256 = file_sha256(local)
        there = str(PurePosixPath(self.work) / "blobs" / sha256)
        if self.call("stat", path=there).get("sha256") != sha256:
            self._copy_in(local, there, sha256)
        return there

    def get(self, there: str, local: Path, most: int = MOST_FILE) -> None:
        """Fetch a file; `local` is the old file or the whole new one.

        Raises:
            KDError: `file-absent`, `copy-failed`, `board-lost`; `board-answer`, it has more than
                `most` bytes, or than it says.
        """
        found = self.call("stat", path=there)
        if not found["exists"]:
            raise file_absent(there, self.label)
        try:
            if found["bytes"] > most:
                raise Unbounded(f"a file of more than {most} bytes")
            self._copy_out(there, local, str(found["sha256"]), int(found["bytes"]))
        except Unbounded as error:
            raise self.refuse("stat", error) from None

    def record(self, there: str) -> dict[str, Any]:
        """What is written beside an engine there.

        Raises:
            KDError: those of `get`; `board-answer`.
        """
        with scratch() as folder:
            local = Path(folder) / "engine.json"
            self.get(there, local, MOST_BYTES)
            try:
                return answers.record(local)
            except BadAnswer as bad:
                raise self.refuse("build", bad) from None

    def inputs(self, arrays: Arrays) -> str:
        """The path there of the inputs, which the next replace; equal ones are not sent again."""
        there = self.path(f"run-{self._token}-in.npz")
        with scratch() as folder:
            local = Path(folder) / "in.npz"
            np.savez(local, allow_pickle=False, **arrays)
            sha256 = file_sha256(local)
            if sha256 != self._inputs_sha256:
                self._send(local, there)
                self._inputs_sha256 = sha256
        return there

    def run(self, arrays: Arrays, name: str = "main") -> dict[str, NDArray[Any]]:
        """The outputs of a loaded network, by name, for inputs by name.

        Raises:
            KDError: the worker's, such as `shape-refused`; `board-answer`.
        """
        outputs = self.path(f"run-{self._token}-out.npz")
        self.call("run", inputs=self.inputs(arrays), outputs=outputs, name=name)
        with scratch() as folder:
            local = Path(folder) / "out.npz"
            try:
                self._fetch(outputs, local, MOST_ARRAYS)
                return answers.arrays(local)
            except (BadAnswer, Unbounded) as bad:
                raise self.refuse("run", bad) from None

    def time(self, arrays: Arrays, name: str = "main", **options: Any) -> dict[str, Any]:
        """Latency of a loaded network; `options` are those of the worker's `time`."""
        return self.call("time", inputs=self.inputs(arrays), name=name, **options)

    def close(self) -> None:
        """Remove this place's own inputs and outputs there and end the worker."""
        try:
            for kind in ("in", "out") if self._inputs_sha256 else ():
                with suppress(KDError):  # a worker that is gone leaves them: small, and only copies
                    self.call("remove", path=self.path(f"run-{self._token}-{kind}.npz"))
        finally:
            self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _check_room(self, size: int) -> None:
        """Refuse a copy that does not fit, before it fills the disk there."""
        free = self._free_mb()
        if size / MIB + RESERVE_MB > free:
            raise disk_full(self.label, self.work, free, size / MIB + RESERVE_MB)

    def _free_mb(self) -> float:
        """Of the disk of the work folder; without bound where the system there does not say."""
        free = self.call("hello")["disk_mb"]
        return math.inf if free is None else float(free)

    def _check_copy(self, local: Path, sha256: str, there: str) -> None:
        """Hold a fetched file against its hash; a damaged one is dropped, to be fetched anew."""
        if file_sha256(local) != sha256:
            local.unlink()
            raise file_differs(there, self.label)

    def _not_started(self, gone: Gone) -> KDError:
        return self._gone(gone)

    def _gone(self, gone: Gone) -> KDError:
        return worker_died(self.label, gone.status, gone.lines)

    @abstractmethod
    def _copy_in(self, local: Path, there: str, sha256: str) -> None: ...

    @abstractmethod
    def _copy_out(self, there: str, local: Path, sha256: str, size: int) -> None: ...

    @abstractmethod
    def _send(self, local: Path, there: str) -> None:
        """Copy a small file, whatever lies there."""

    @abstractmethod
    def _fetch(self, there: str, local: Path, most: int) -> None:
        """Copy a file from there; `Unbounded` where it has more than `most` bytes."""


def boot_command(backend: str, source: bytes | None = None) -> tuple[str, str, str, str]:
    """Python's arguments: it reads and runs `bootstrap`, which reads and runs the agent.

    Args:
        backend: of the agent.
        source: a zip file with a program in place of the agent.
    """
    # no module of the folder that one happens to be in may stand for the library's
    safe = "sys.path[:]=[p for p in sys.path if p]"
    code = f"import sys;{safe};exec(sys.stdin.buffer.read({len(boot_source())}))"
    return ("-c", code, backend, str(len(agent_zip() if source is None else source)))


def boot_source() -> bytes:
    """The text of `bootstrap`."""
    return BOOTSTRAP.read_bytes()
