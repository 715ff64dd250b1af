"""Atomic replacement of a folder: the old or the new one is there whatever happens."""

import ctypes
import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from kdcompile.core.disk import sync_folder
from kdcompile.core.files import sweep_files
from kdcompile.core.locks import folder_if_free

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # Linux, <fcntl.h> and <linux/fs.h>
MADE = ".kdcompile-"
TAKEN = (errno.ENOTEMPTY, errno.EEXIST)
TRIES = 100  # others that install to the same place at the same time


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A temporary folder on the same disk; those that killed processes left there are removed.

    Raises:
        OSError: it cannot be made.
    """
    sweep_beside(folder)
    prefix = f".{folder.name}{MADE}"
    with ExitStack() as held:
        for _ in range(TRIES):
            temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
            free = held.enter_context(folder_if_free(temporary))
            held.callback(shutil.rmtree, temporary, ignore_errors=True)
            if free is not False:  # one just made has no owner yet: another may have taken it
                break
        yield temporary


def sweep_beside(folder: Path) -> None:
    """Remove what killed processes left of `beside` this folder, and of files in it."""
    for leftover in folder.parent.glob(f"{glob.escape(f'.{folder.name}{MADE}')}*"):
        with folder_if_free(leftover) as free:
            if free:
                shutil.rmtree(leftover, ignore_errors=True)
    sweep_files(folder)


def sync_tree(folder: Path) -> None:
    """Put the content of every file and folder on the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            with Path(root, name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(root))


def swap(fresh: Path, folder: Path) -> None:
    """Give `fresh` the name `folder`; one that is there is then in `fresh`, or `old` beside it.

    On Linux the two change their names at once. Elsewhere there are two renames, and where the
    second fails the old folder is back in its place.

    Raises:
        OSError: nothing was changed.
    """
    sync_tree(fresh)
    for _ in range(TRIES):
        try:
            if not folder.is_dir():
                fresh.rename(folder)
            elif not _exchange(fresh, folder):
                _rename_twice(fresh, folder)
        except OSError as error:
            # another process has put its own there, or taken it away, since the question
            if error.errno in TAKEN or (error.errno == errno.ENOENT and fresh.is_dir()):
                continue
            raise
        sync_folder(folder.parent)
        return
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(folder))


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system has no such."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _rename_twice(fresh: Path, folder: Path) -> None:
    aside = fresh.with_name("old")
    folder.rename(aside)
    try:
        fresh.rename(folder)
    except OSError:
        with suppress(OSError):  # where another process was quicker, its folder stays
            aside.rename(folder)
        raise
