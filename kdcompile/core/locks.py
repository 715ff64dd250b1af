"""Locks of a store: who waits says for whom; a process that dies leaves none behind."""

import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from kdcompile.core.errors import KDError

log = logging.getLogger("kdcompile")
OWNER = ".owner"
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of a file; wait for it, and say so, where another process has it.

    Args:
        path: the lock's file; its folder exists. Beside it the owner leaves its name.
        what: the owner does, for those who wait: "makes distill".

    Raises:
        KDError: `store-locks`, the file system has none.
        OSError: the lock's file cannot be written.
    """
    from filelock import FileLock, Timeout

    check_locks(path.parent)
    lock, owner = FileLock(path), path.with_name(path.name + OWNER)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("waiting for %s, which %s", _owner(owner), what)
        lock.acquire()
        log.warning("waited; going on")
    try:
        with suppress(OSError):  # a name is a courtesy
            since = time.strftime("%H:%M:%S")
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()} (since {since})")
        yield
    finally:
        with suppress(OSError):
            owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the lock where nobody has it; gives whether it is held now.

    Raises:
        KDError: `store-locks`, the file system has none.
        OSError: the lock's file cannot be written.
    """
    from filelock import FileLock, Timeout

    check_locks(path.parent)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def check_locks(folder: Path) -> None:
    """Refuse a file system without flock.

    There filelock takes the existence of the lock's file for the lock, and the files of earlier
    locks are there: it would wait for ever.

    Raises:
        KDError: `store-locks`.
    """
    try:
        import fcntl
    except ImportError:  # Windows has locks of its own
        return
    with ExitStack() as stack:
        try:
            probe = stack.enter_context(TemporaryFile(dir=folder))  # that nobody else locks
        except OSError:  # the lock itself tells what is wrong with the folder
            return
        try:
            fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            raise KDError(
                "store-locks",
                f"the file system there has no locks between processes (flock: {error.strerror})",
                where=str(folder),
                fix="work on a copy of the spec's folder on a local disk; Lustre has locks when "
                "it is mounted with -o flock",
            ) from error


@contextmanager
def folder_if_free(path: Path) -> Iterator[bool | None]:
    """Hold a folder or a file itself where nobody has it, with no file of a lock beside it.

    Gives whether it is held now: False where another process has it or it is gone, None where the
    system or the file system cannot tell (Windows, NFS).
    """
    try:
        import fcntl
    except ImportError:
        yield None
        return
    with ExitStack() as stack:
        try:
            number = os.open(path, os.O_RDONLY)
            stack.callback(os.close, number)
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held: bool | None = os.path.samestat(os.fstat(number), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            held = False
        except OSError:
            held = None
        yield held


def holder(path: Path) -> str:
    """Who has the lock, in words."""
    return _owner(path.with_name(path.name + OWNER))


def _owner(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip() or "another process"
    except OSError:
        return "another process"
