"""One worker process: a request line in, an answer line out, within a time."""

import json
import subprocess
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

KEPT_LINES, KEPT_CHARS = 20, 500
LEAVE_S = 5.0


class Gone(Exception):  # noqa: N818  # told to the user as one of several errors
    """The process ended without an answer.

    Args:
        status: its exit status, negative for a signal.
        lines: the last lines of its standard error.
    """

    def __init__(self, status: int, lines: list[str]) -> None:
        super().__init__(f"status {status}")
        self.status, self.lines = status, lines


class WorkerProcess:
    """A process that answers JSON lines; its standard error is kept, a bounded part of it."""

    def __init__(self, command: Sequence[str]) -> None:
        # of its own session, so that Ctrl-C reaches it through `close` and not in mid-answer
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._requests = 0
        self._answers: Queue[bytes | None] = Queue()
        self._errors: deque[str] = deque(maxlen=KEPT_LINES)
        self._threads = [Thread(target=task, daemon=True) for task in (self._listen, self._collect)]
        for thread in self._threads:
            thread.start()

    def send(self, data: bytes) -> None:
        """Write; a process that is gone is noticed by `answer`, after its last words."""
        with suppress(BrokenPipeError, ConnectionResetError):
            stream = _open(self._process.stdin)
            stream.write(data)
            stream.flush()

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and return its answer; raises what `answer` does."""
        self._requests += 1
        line = json.dumps({"id": self._requests, **request}) + "\n"
        self.send(line.encode())
        return self.answer(timeout_s)

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """The next answer: `{"id", "ok"}` or `{"id", "error"}`.

        Other lines on standard output, such as a login shell's greeting, are skipped.

        Raises:
            TimeoutError: none came; the process is ended, for a late answer would be taken for
                the next one.
            Gone: the process ended.
        """
        while True:
            try:
                line = self._answers.get(timeout=timeout_s)
            except Empty:
                self.close(at_once=True)
                raise TimeoutError from None
            if line is None:
                self._answers.put(None)
                raise Gone(self._wait(), self._last_lines())
            with suppress(ValueError):
                found = json.loads(line)
                if isinstance(found, dict) and ("ok" in found or "error" in found):
                    return found

    def forget_errors(self) -> None:
        """Drop what has come on standard error so far."""
        self._errors.clear()

    def close(self, at_once: bool = False) -> None:
        """End the process: by the end of its input, and by force where that does not help."""
        with suppress(BrokenPipeError, ConnectionResetError):
            _open(self._process.stdin).close()
        if at_once:
            self._process.kill()
        self._wait()
        for thread in self._threads:
            thread.join(LEAVE_S)
        if not any(thread.is_alive() for thread in self._threads):
            _open(self._process.stdout).close()
            _open(self._process.stderr).close()

    def _wait(self) -> int:
        try:
            return self._process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _last_lines(self) -> list[str]:
        self._threads[1].join(LEAVE_S)
        return list(self._errors)

    def _listen(self) -> None:
        for line in _open(self._process.stdout):
            self._answers.put(line)
        self._answers.put(None)

    def _collect(self) -> None:
        for line in _open(self._process.stderr):
            text = line.decode(errors="replace").strip()
            if text:
                self._errors.append(text[:KEPT_CHARS])


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "all three are pipes"
    return stream
