"""One worker process: a message in, a message out, within a time and bounded memory."""

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
from kdcompile.remote.agent.messages import HEAD, MARK, message, size_in
from kdcompile.remote.bounded import KEPT_LINES, LEAVE_S, keep_last

MOST_BEFORE = 1 << 16  # bytes before the first answer, as of a login shell's greeting
MOST_WAITING = 2  # answers that nobody has asked for yet
DIGITS = 20  # of a 64-bit mask
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
    """Messages that came and were not read yet.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._waiting = clock, Queue[bytes | BadAnswer | None]()

    def take_all(self, stream: IO[bytes]) -> None:
        """Take every message of a stream, after whatever text stands before the first.

        Raises:
            BadAnswer: bytes that are no message, or answers without requests; `next` raises it too.
        """
        try:
            head = _first_head(stream)
            while len(head) == HEAD:
                size = size_in(head)
                body = stream.read(size)
                if len(body) < size:
                    break
                if self._waiting.qsize() >= MOST_WAITING:
                    raise BadAnswer("answers to no request")
                self._waiting.put(body)
                head = stream.read(HEAD)
        except (BadAnswer, ValueError) as error:
            bad = BadAnswer(str(error))
            self._waiting.put(bad)
            raise bad from None
        self._waiting.put(None)

    def next(self, number: int | None, timeout_s: float) -> dict[str, Any] | None:
        """The next answer; None where there will be none.

        Args:
            number: of the request. Only an error may come without: of a worker that cannot start.
            timeout_s: for all of it to come.

        Raises:
            TimeoutError, BadAnswer.
        """
        end = self._clock() + timeout_s
        while (left := end - self._clock()) > 0:
            with suppress(Empty):
                body = self._waiting.get(timeout=min(left, LOOK_S))
                if isinstance(body, bytes):
                    return _checked(body, number)
                self._waiting.put(body)  # for every later call
                if body is None:
                    return None
                raise body
        raise TimeoutError


def _first_head(stream: IO[bytes]) -> bytes:
    """The first `HEAD` bytes of the first message; fewer at the end of the stream."""
    found = stream.read(len(MARK))
    for _ in range(MOST_BEFORE):
        if found == MARK:
            return found + stream.read(HEAD - len(MARK))
        byte = stream.read(1)
        if not byte:
            return b""
        found = found[1:] + byte
    raise BadAnswer(f"no message among its first {MOST_BEFORE} bytes")


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


def _checked(body: bytes, number: int | None) -> dict[str, Any]:
    try:
        found = parsed(body)
    except ValueError:
        raise BadAnswer("it is no JSON") from None
    if not isinstance(found, dict):
        raise BadAnswer(f"a {type(found).__name__} where an object belongs")
    known, has_error = found.get("id"), "error" in found
    if ("ok" in found) is has_error or set(found) - {"id", "ok", "error"}:
        raise BadAnswer("it needs an id and one of `ok` and `error`, and has others")
    is_start = known is None and (number is None or (number == 1 and has_error))
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
    """A process that answers messages; its standard error is kept, a bounded part of it."""

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
        self.send(message({"id": self._requests, **request}))
        return self.answer(timeout_s)

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """The answer to the last request: `{"id", "ok"}` or `{"id", "error"}`.

        Text on standard output before the first, such as a login shell's greeting, is skipped.

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
        keep_last(_open(self._process.stderr), self._errors)


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "all three are pipes"
    return stream
