"""Files that come from a place, which may be longer than it says or have no end."""

import os
import signal
import stat
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import Thread
from typing import IO

from kdcompile.core.errors import plain

MOST_FILE = 8 << 30  # an engine, which a board's memory holds
MOST_ARRAYS = 1 << 30  # a network's outputs
KEPT_LINES, KEPT_CHARS = 20, 500
PIECE = 1 << 16  # of a line, and of a file
LEAVE_S = 5.0
BLOCK = 512  # the unit of the shell's `ulimit -f`


class Unbounded(Exception):  # noqa: N818  # a BadAnswer to who asked
    """A file that has more bytes than it may, or has no end."""


def copy(there: str, local: Path, most: int) -> None:
    """Copy a regular file of this machine; nothing else is waited for.

    Raises:
        Unbounded: it has more than `most` bytes, or is no regular file.
        OSError: it cannot be read.
    """
    descriptor = os.open(there, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(descriptor, "rb") as source, local.open("wb") as target:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Unbounded("no regular file")
        while piece := source.read(PIECE):
            if target.tell() + len(piece) > most:
                raise Unbounded(f"a file of more than {most} bytes")
            target.write(piece)


def run(
    command: Sequence[str], given: str, folder: Path, seconds: float, most: int = MOST_FILE
) -> tuple[int, list[str]]:
    """Run a program that writes no file longer than `most` bytes, up to a block.

    Args:
        command: the program and its arguments.
        given: its standard input.
        folder: in which it runs.
        seconds: that it may take.
        most: bytes.

    Returns:
        Its exit status, and the last lines of its standard error, which is read to its end.

    Raises:
        Unbounded: it was ended at the limit.
        subprocess.TimeoutExpired: it was ended for its time.
    """
    limited = ["sh", "-c", 'ulimit -f "$0" && exec "$@"', str(most // BLOCK + 1), *command]
    process = Popen(limited, stdin=PIPE, stdout=DEVNULL, stderr=PIPE, cwd=folder)
    said: deque[str] = deque(maxlen=KEPT_LINES)
    listener = Thread(target=keep_last, args=(process.stderr, said), daemon=True)
    listener.start()
    assert process.stdin is not None, "it is a pipe"
    assert process.stderr is not None, "it is a pipe"
    try:
        with suppress(BrokenPipeError), process.stdin as stream:
            stream.write(given.encode())
        status = process.wait(seconds)
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        listener.join(LEAVE_S)
        if not listener.is_alive():  # else a child of it has the pipe
            process.stderr.close()
    if status == -signal.SIGXFSZ:
        raise Unbounded(f"a file of more than {most} bytes")
    return status, list(said)


def keep_last(stream: IO[bytes], lines: deque[str]) -> None:
    """Read a stream to its end and keep its last lines, as they may be shown."""
    while line := stream.readline(PIECE):
        text = line.decode(errors="replace").strip()
        if text:
            lines.append(plain(text[:KEPT_CHARS]))
