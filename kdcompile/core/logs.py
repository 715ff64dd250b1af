"""Logging of a command: lines on standard error, and all of them in the store.

Standard output has results only. The log file of a store is limited; where it cannot be written,
the command runs all the same.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

from kdcompile import __version__
from kdcompile.core.escape import plain, plain_lines

FILE = "log.txt"
MOST_BYTES = 2_000_000  # of the file, and of the one before it
CONSOLE = "console"
log = logging.getLogger("kdcompile")


class _Line(logging.Formatter):
    """What is logged on one line, though a name in it may be anybody's; a trace has its own."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        text = super().format(record)
        return plain_lines(text) if record.exc_info else plain(text)


class _Console(logging.Handler):
    """To standard error as it is now: a progress bar stands in for it while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # a pipe that nobody reads any more
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()


class _File(RotatingFileHandler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Lose the line: a full disk is told by what needs the disk."""


def begin(level: int = logging.INFO) -> None:
    """Tell what is logged at `level` or above on standard error."""
    root, handler = logging.getLogger(), _Console(level)
    handler.set_name(CONSOLE)
    handler.setFormatter(_Line())
    root.handlers[:] = [one for one in root.handlers if one.get_name() != CONSOLE]
    root.addHandler(handler)
    log.setLevel(logging.DEBUG)  # the handlers choose


def set_level(level: int) -> None:
    """Tell what is logged at `level` or above, once `begin` was called."""
    for handler in logging.getLogger().handlers:
        if handler.get_name() == CONSOLE:
            handler.setLevel(level)


def is_quiet() -> bool:
    """Whether the user wants warnings and errors only."""
    return any(
        handler.get_name() == CONSOLE and handler.level > logging.INFO
        for handler in logging.getLogger().handlers
    )


@contextmanager
def kept_in(store: Path) -> Iterator[None]:
    """Append all that is logged to the store's file too, and the error that ends it."""
    handler = _opened(store / FILE)
    if handler is None:
        yield
        return
    log.addHandler(handler)
    try:
        handler.emit(_record(f"kdcompile {__version__}: {' '.join(sys.argv[1:])}"))
        yield
    except BaseException as error:
        handler.emit(_record(str(error) or type(error).__name__, logging.ERROR))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def _opened(path: Path) -> _File | None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = _File(
            path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8", errors="backslashreplace"
        )
    except OSError:
        return None
    made.setFormatter(_Line("%(asctime)s %(process)d %(levelname)s %(message)s"))
    return made


def _record(text: str, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord(log.name, level, __file__, 0, text, None, None)
