"""Unforeseen exceptions: a file with all that a report needs, and an error that names it."""

import os
import platform
import re
import sys
import time
import traceback
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import gettempdir

from kdcompile import __version__
from kdcompile.core.errors import InternalError
from kdcompile.core.files import write_text

STORE = ".kdcompile"
LIBRARIES = ("torch", "torchvision", "onnx", "onnxruntime", "tensorrt", "numpy", "pydantic")
# a user's password in an address, and the value of a name that says that it is one
SECRETS = (
    (re.compile(r"(\w+:/*[^@/:\s]*):[^@\s]+@"), r"\1:***@"),
    (
        re.compile(r"(?i)((?:password|passwd|token|secret|api_?key)\w*[\"']?\s*[=:]\s*)\S+"),
        r"\1***",
    ),
)
MOST_TRACE = 200_000


def unforeseen(error: Exception) -> InternalError:
    """Keep an exception in a file; the error that tells the user of it.

    The file is in the store of the command's spec, or else in the folder of temporary files.
    """
    kept = _keep(_report(error))
    last = traceback.extract_tb(error.__traceback__)[-1:]
    place = f"{last[0].filename}, line {last[0].lineno}" if last else type(error).__name__
    said = without_secrets((str(error).strip() or "no reason given").splitlines()[0][:500])
    how = (
        f"open an issue at kdcompile's repository and attach {kept}"
        if kept
        else "run it again with KDCOMPILE_DEBUG=1 and open an issue with what it prints"
    )
    return InternalError(
        "internal",
        f"this is a fault of kdcompile: {type(error).__name__}: {said}",
        where=place,
        fix=f"{how} (the trace, the versions and the command line: read it before you send it); "
        "what was finished is kept, and the same command goes on from there",
    )


def without_secrets(text: str) -> str:
    """Text without passwords and tokens that are named as such."""
    for pattern, instead in SECRETS:
        text = pattern.sub(instead, text)
    return text


def _report(error: Exception) -> str:
    trace = "".join(traceback.format_exception(error))
    lines = [
        f"kdcompile {__version__}, Python {platform.python_version()}, {platform.platform()}",
        *(f"{name} {found}" for name in LIBRARIES if (found := _version(name))),
        f"command: kdcompile {' '.join(sys.argv[1:])}",
        "",
        trace[-MOST_TRACE:],
    ]
    return without_secrets("\n".join(lines))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _keep(text: str) -> Path | None:
    """The file of a report; None where none can be written."""
    name = f"internal-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    for store in (*_stores(), None):
        with suppress(OSError, ValueError):  # the next one, then
            folder = store or Path(gettempdir())
            write_text(folder / name, text)
            return (folder / name).absolute()
    return None


def _stores() -> list[Path]:
    """The stores beside what the command names, and of the current folder."""
    words = [Path(word) for word in (*sys.argv[1:], ".") if not word.startswith("-")]
    found = []
    for place in (one for word in words for one in (word, word.parent)):
        with suppress(OSError, ValueError):  # a word that is no path
            if (place / STORE).is_dir():
                found.append(place / STORE)
    return found
