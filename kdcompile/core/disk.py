"""A disk that is full or may not be written: found in any library's error and said in one way."""

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kdcompile.core.errors import KDError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# of a disk, or of a file system that lacks what every other one has
FAILED = (errno.EIO, errno.ESTALE, errno.ENOLCK, errno.ENOSYS)


def is_full(error: BaseException) -> bool:
    """Whether a full disk, a quota or a limit of a file's size is what caused an error.

    Libraries in C++ and Rust (torch, safetensors) give it as text, with the system's words.
    """
    return _number_of(error, FULL) is not None


def _number_of(error: BaseException, numbers: Sequence[int]) -> int | None:
    """Which of these errors of the system caused an error; None for none of them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in numbers:
            return cause.errno
        text = str(cause)
        for n in numbers:
            if os.strerror(n) in text or f"os error {n})" in text:
                return n
        cause = cause.__cause__ or cause.__context__
    return None


def disk_error(error: BaseException, place: Path | None = None) -> KDError | None:
    """What to tell the user of an error of the disk; None where it is of something else.

    Args:
        error: as a library raised it.
        place: what was to be written, for an error that names no file.
    """
    if isinstance(error, KDError):
        return None
    name = getattr(error, "filename", None)
    if is_full(error):
        where = str(name) if isinstance(name, str) else str(_fullest(place or Path()))
        return disk_full(where)
    failed = is_failed(error)
    if failed is not None:
        return disk_failed(failed, str(name or place or _here()))
    forbidden = _number_of(error, (errno.EROFS,))
    if isinstance(error, OSError) and error.errno in FORBIDDEN:
        forbidden = error.errno
    if forbidden is not None:
        return KDError(
            "not-permitted",
            f"a file or folder may not be read or written: {os.strerror(forbidden)}",
            where=str(name or place or _here()),
            fix="change the permissions of that path, or work on a copy in a folder of your own",
        )
    return None


def disk_failed(number: int, where: str) -> KDError:
    """The error of a disk, or a network's file system, that does not do as it is told."""
    return KDError(
        "disk-failed",
        f"the disk there does not work: {os.strerror(number)}",
        where=where,
        fix="see what the system says of it (dmesg, or the state of the network drive); then run "
        "the same command again, on a copy on another disk where it is broken",
    )


def unread(place: Path, why: str) -> KDError:
    """The error of a disk that gives back something else than was just written to it."""
    return KDError(
        "disk-failed",
        f"what was just written there cannot be read back: {why}",
        where=str(place),
        fix="see what the system says of it (dmesg, or the state of the network drive); then run "
        "the same command again: the entry is made anew",
    )


def is_failed(error: BaseException) -> int | None:
    """The number of the system's error where a disk that does not work caused it."""
    return _number_of(error, FAILED)


def disk_full(where: str) -> KDError:
    """The error of a disk without room."""
    return KDError(
        "disk-full",
        "there is no room to write: the disk, a quota or the limit of a file's size is reached",
        where=where,
        fix="free some space (kdcompile clean removes what the current spec does not use) or raise "
        "the limit (ulimit -f), then run the same command again: finished steps are kept",
    )


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, so that a power cut does not undo a rename."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # a system whose folders cannot be opened has no such order to give
        return
    try:
        os.fsync(handle)
    except OSError:  # nor do some network file systems
        return
    finally:
        os.close(handle)


def _fullest(place: Path) -> Path:
    """The place itself or the folder of temporary files: the one with less room."""

    def room(path: Path) -> int:
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        return shutil.disk_usage(there).free

    try:
        return min(place.absolute(), Path(tempfile.gettempdir()), key=room)
    except OSError:  # neither can be looked at
        return place


def _here() -> str:
    """The current folder, also where it is there no more."""
    try:
        return os.getcwd()
    except OSError:
        return os.curdir
