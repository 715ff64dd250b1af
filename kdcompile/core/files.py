"""Files that are whole or not there, and their hashes."""

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from kdcompile.core.disk import sync_folder
from kdcompile.core.locks import folder_if_free
from kdcompile.core.readers import LARGEST_TEXT, read_json, refuse_endless

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp", re.DOTALL)
ABANDONED_S = 86_400
SCRATCH = ".kdcompile-scratch-"
_swept: set[Path] = set()  # folders in which this process has looked for what others left
_places: list[Path] = []  # of `scratch`, the last one counts


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; at the end the file is `path`, whole and on the disk.

    Nobody can guess the name, and put a link there that the block would write through. The file is
    there, empty, and held until the end, so that `sweep_files` of another process leaves it alone.
    The first file that a process writes into a folder sweeps that folder.

    Where the block fails, what was at `path` stays and the temporary file goes.
    """
    with ExitStack() as held:
        temporary = _begun(path, held)
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename in (None, str(temporary)):
                error.filename = str(path)  # a write or fsync names no file, and the other is gone
            raise
    sync_folder(path.parent)


def _begun(path: Path, held: ExitStack) -> Path:
    """An empty temporary file beside `path`, held by this process where the system can tell."""
    if path.parent not in _swept:
        _swept.add(path.parent)
        sweep_files(path.parent)
    while True:
        temporary = path.with_name(f".{path.name}.{os.urandom(8).hex()}.tmp")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if held.enter_context(folder_if_free(temporary)) is not False:
            return temporary  # else it was swept before it was held


def sweep_files(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder, and no other file.

    Where the system cannot tell whether a process has one, a day must have passed.
    """
    with suppress(OSError):  # where nothing can be removed, nothing can be made either
        for path in folder.glob(".*.tmp"):
            if not TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
                continue
            with folder_if_free(path) as free:
                if free or (free is None and time.time() - path.stat().st_mtime > ABANDONED_S):
                    path.unlink(missing_ok=True)


def scratch_below(folder: Path) -> None:
    """Have `scratch` make its folders in this one from now on, which need not be there yet."""
    _places[:] = [folder]


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder of this process, gone at the end; `sweep_scratch` finds those it left.

    It lies below the store of the command, else in the system's folder of temporary files.
    """
    with ExitStack() as held:
        free: bool | None = False
        while free is False:  # swept before it was held
            folder = _scratch_folder()
            held.callback(_leave, folder.parent)
            held.callback(shutil.rmtree, folder, ignore_errors=True)
            free = held.enter_context(folder_if_free(folder))
        yield folder


def _scratch_folder() -> Path:
    """A new folder; the first one of a process at its place sweeps that place."""
    for place in _places:
        with suppress(OSError):  # a store that is read-only, or full
            place.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix=SCRATCH, dir=_clean(place)))
    return Path(tempfile.mkdtemp(prefix=SCRATCH, dir=_clean(Path(tempfile.gettempdir()))))


def _leave(place: Path) -> None:
    """Remove a place below a store with its last folder; who made another there keeps it."""
    if place in _places:
        with suppress(OSError):
            place.rmdir()


def _clean(place: Path) -> Path:
    if place not in _swept:
        _swept.add(place)
        sweep_scratch(place)
    return place


def sweep_scratch(place: Path) -> None:
    """Remove the folders of `scratch` there that killed processes of this user left."""
    user = os.getuid() if hasattr(os, "getuid") else None
    for folder in place.glob(f"{SCRATCH}*"):
        with suppress(OSError), folder_if_free(folder) as free:
            about = folder.lstat()
            ours = stat.S_ISDIR(about.st_mode) and user in (None, about.st_uid)
            if ours and (free or (free is None and time.time() - about.st_mtime > ABANDONED_S)):
                shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """`write_text` of `json_text`."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Indented JSON, as files have it."""
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    refuse_endless(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(path: Path) -> None:
    """Keep the hash of a finished file beside it, for `is_sealed`."""
    write_text(_seal_of(path), file_sha256(path))


def is_sealed(path: Path) -> bool:
    """Whether a file is there and as it was when `seal` saw it."""
    try:
        return _seal_of(path).read_text() == file_sha256(path)
    except (OSError, ValueError):
        return False


def _seal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def mark(info: os.stat_result) -> list[int]:
    """What changes with a file's bytes: size, times and inode."""
    return [info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino]


_read: dict[str, list[Any]] = {}  # by this process, whatever store asked for it


class Hasher:
    """SHA-256 of files, remembered in `cache` by size, inode and times.

    The time of the inode's change tells an edit that has put the modification time back.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known: dict[str, list[Any]] = {}
        self._dirty = False
        if cache.is_file():
            with suppress(ValueError, OSError):  # a torn cache is only a slower start
                known = read_json(cache, LARGEST_TEXT)
                self._known = known if isinstance(known, dict) else {}

    @property
    def is_dirty(self) -> bool:
        """Whether something was learnt since the last `save`."""
        return self._dirty

    def file(self, path: Path) -> str:
        """Hex SHA-256 of the file's bytes."""
        now = mark(path.stat())
        known = self._known.get(str(path))
        if isinstance(known, list) and len(known) == len(now) + 1 and known[:-1] == now:
            return str(known[-1])
        read = _read.get(str(path))
        value = read[-1] if read and read[:-1] == now else file_sha256(path)
        self._known[str(path)] = _read[str(path)] = [*now, value]
        self._dirty = True
        return value

    def files(self, paths: Iterable[Path], base: Path) -> dict[str, str]:
        """Hashes by path relative to `base`."""
        return {p.relative_to(base).as_posix(): self.file(p) for p in sorted(paths)}

    def save(self) -> None:
        """Keep what was learnt for the next run; where that is not possible, it starts slower."""
        if self._dirty:
            with suppress(OSError):
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._cache, json.dumps(self._known))
            self._dirty = False


def config_folder() -> Path:
    """The folder of the user's own settings, there or not: in `$XDG_CONFIG_HOME` or `~/.config`."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    try:
        # the XDG specification: a relative path there is to be ignored
        home = Path(base) if os.path.isabs(base) else Path.home() / ".config"
    except RuntimeError:  # no HOME, and a user whom the system does not know
        home = Path(os.devnull)  # in which nothing lies and nothing can be put
    return home / "kdcompile"
