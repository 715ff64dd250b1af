"""One worker process: a request line in, an answer line out, within a time and bounded memory."""

import json
import math
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, Queue, SimpleQueue
from threading import Thread
from typing import IO, Any

from kdcompile.core.errors import plain

KEPT_LINES, KEPT_CHARS = 20, 500
LEAVE_S = 5.0
MOST_BYTES = 8 << 20  # of one answer; that of a build, with ten thousand layers, is a quarter of it
MOST_WAITING = 16  # answers that nobody asked for
DIGITS = 20  # of a 64-bit mask
PIECE = 1 << 16  # of a line of standard error
LOOK_S = 0.5  # a signal that comes just before a wait is handled only when the wait returns


class Gone(Exception):  # noqa: N818  # told to the user as one of several errors
    """The process ended without an answer.

    Args:
        status: its exit status, negative for a signal.
        lines: the last lines of its standard error.
    """

    def __init__(self, status: int, lines: list[str]) -> None:
        super().__init__(f"status {status}")
        self.status, self.lines = status, lines


class BadAnswer(Exception):  # noqa: N818  # likewise
    """What came is no answer of a worker; the text says why."""


class Answers:
    """Lines that came and were not read yet.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lines = clock, Queue[bytes | BadAnswer | None]()

    def take_all(self, stream: IO[bytes]) -> None:
        """Take every line of a stream; what cannot be an answer is dropped at once.

        Raises:
            BadAnswer: a line without an end, or answers without requests; `next` raises it too.
        """
        try:
            while line := stream.readline(MOST_BYTES + 1):
                if len(line) > MOST_BYTES:
                    raise BadAnswer(f"a line of more than {MOST_BYTES >> 20} MiB")
                if not line.lstrip().startswith(b"{"):
                    continue
                if self._lines.qsize() >= MOST_WAITING:
                    raise BadAnswer("answers to no request")
                self._lines.put(line)
        except BadAnswer as error:
            self._lines.put(error)
            raise
        self._lines.put(None)

    def next(self, number: int | None, timeout_s: float) -> dict[str, Any] | None:
        """The next answer; None where there will be none.

        Args:
            number: of the request. Only an error may come without: of a worker that cannot start.
            timeout_s: for all that comes until then.

        Raises:
            TimeoutError, BadAnswer.
        """
        end = self._clock() + timeout_s
        while True:
            left = end - self._clock()
            if left <= 0:
                raise TimeoutError
            try:
                line = self._lines.get(timeout=min(left, LOOK_S))
            except Empty:
                continue
            if line is None or isinstance(line, BadAnswer):
                self._lines.put(line)  # for every later call
                if line is None:
                    return None
                raise line
            found = _answer_in(line)
            if found is not None:
                return _checked(found, number)


def parsed(text: bytes) -> Any:
    """A JSON value of finite numbers, from whoever wrote it.

    Raises:
        ValueError: it is no JSON.
        BadAnswer: it is, and no worker's.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_number, parse_int=_integer)
    except RecursionError:
        raise BadAnswer("it is nested too deep") from None


def _answer_in(line: bytes) -> dict[str, Any] | None:
    """The answer in a line; None where there is none, as in a login shell's greeting."""
    try:
        found = parsed(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"id", "ok", "error"} & set(found) else None


def _checked(found: dict[str, Any], number: int | None) -> dict[str, Any]:
    known, has_error = found.get("id"), "error" in found
    if ("ok" in found) is has_error:
        raise BadAnswer("it needs one of `ok` and `error`")
    is_start = known is None and (has_error or number is None)
    if not is_start and (type(known) is not int or known != number):
        raise BadAnswer(f"it is to request {plain(repr(known)[:40])}, not to {number}")
    return found


def _no_number(text: str) -> float:
    raise BadAnswer(f"{text} is no number")


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text[:40])


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise BadAnswer(f"an integer of {len(text)} digits")
    return int(text)


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
        self._answers = Answers()
        self._to_send: SimpleQueue[bytes | None] = SimpleQueue()
        self._errors: deque[str] = deque(maxlen=KEPT_LINES)
        self._threads = [
            Thread(target=task, daemon=True) for task in (self._listen, self._collect, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, data: bytes) -> None:
        """Write, without waiting for one that does not read; `answer` notices it is gone."""
        self._to_send.put(data)

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and return its answer; raises what `answer` does."""
        self._requests += 1
        line = json.dumps({"id": self._requests, **request}) + "\n"
        self.send(line.encode())
        return self.answer(timeout_s)

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """The answer to the last request: `{"id", "ok"}` or `{"id", "error"}`.

        Other lines on standard output, such as a login shell's greeting, are skipped.

        Raises:
            TimeoutError: none came; the process is ended, for a late answer would be taken for
                the next one.
            BadAnswer: what came is none; the process is ended.
            Gone: the process ended.
        """
        try:
            found = self._answers.next(self._requests or None, timeout_s)
        except (TimeoutError, BadAnswer):
            self.close(at_once=True)
            raise
        if found is None:
            raise Gone(self._wait(), self._last_lines())
        return found

    def forget_errors(self) -> None:
        """Drop what has come on standard error so far."""
        self._errors.clear()

    def close(self, at_once: bool = False) -> None:
        """End the process: by the end of its input, and by force where that does not help."""
        self._to_send.put(None)
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

    def _write(self) -> None:
        stream = _open(self._process.stdin)
        while (data := self._to_send.get()) is not None:
            with suppress(BrokenPipeError, ConnectionResetError):
                stream.write(data)
                stream.flush()
        with suppress(BrokenPipeError, ConnectionResetError):
            stream.close()

    def _listen(self) -> None:
        try:
            self._answers.take_all(_open(self._process.stdout))
        except BadAnswer:
            self._process.kill()

    def _collect(self) -> None:
        while line := _open(self._process.stderr).readline(PIECE):
            text = line.decode(errors="replace").strip()
            if text:
                self._errors.append(plain(text[:KEPT_CHARS]))


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "all three are pipes"
    return stream
