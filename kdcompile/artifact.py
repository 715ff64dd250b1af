"""What a stage makes, and the content-addressed store that keeps it.

An entry is a folder `STAGE/KEY` with an `artifact.json` that lists every file with its SHA-256.
It is made in a temporary folder under a lock, then renamed, so that a reader never sees half of it.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcompile.errors import KDError

if TYPE_CHECKING:
    from kdcompile.backends.board import Board
    from kdcompile.spec import Spec

KEY_CHARS = 24


def canonical(value: Any) -> bytes:
    """JSON bytes that do not depend on key order."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-like value, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; at the end the file is `path`, whole and on the disk.

    Where the block fails, what was at `path` stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    yield temporary
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old one or the whole new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Hasher:
    """SHA-256 of files, remembered by size, modification time and inode in `cache`."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._known: dict[str, list[Any]] = {}
        self._dirty = False
        if cache.is_file():
            try:
                self._known = json.loads(cache.read_text())
            except ValueError:  # a torn cache is only a slower start
                self._known = {}

    def file(self, path: Path) -> str:
        """Hex SHA-256 of the file's bytes."""
        info = path.stat()
        mark = [info.st_size, info.st_mtime_ns, info.st_ino]
        known = self._known.get(str(path))
        if known is not None and known[:3] == mark:
            return str(known[3])
        value = file_sha256(path)
        self._known[str(path)] = [*mark, value]
        self._dirty = True
        return value

    def files(self, paths: Iterable[Path], base: Path) -> dict[str, str]:
        """Hashes by path relative to `base`."""
        return {p.relative_to(base).as_posix(): self.file(p) for p in sorted(paths)}

    def save(self) -> None:
        """Keep what was learnt for the next run; where that is not allowed, it starts slower."""
        if self._dirty:
            with suppress(PermissionError):
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                write_text(self._cache, json.dumps(self._known))
            self._dirty = False


@dataclass(frozen=True)
class Artifact:
    """A finished, read-only store entry."""

    stage: str
    key: str
    path: Path
    files: Mapping[str, str]  # relative path -> SHA-256
    meta: Mapping[str, Any]

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            KeyError: the artifact has no such file.
        """
        if name not in self.files:
            raise KeyError(f"{self.stage} artifact has no {name!r}; it has {sorted(self.files)}")
        return self.path / name

    def json(self, name: str) -> Any:
        """The parsed content of one of its JSON files."""
        return json.loads(self.file(name).read_text())


@dataclass(frozen=True)
class Step:
    """One planned stage: the parts of the spec that it may read, and the artifacts it takes.

    `board` is where an engine is built and timed; None where this machine is all there is.
    """

    stage: str
    key: str
    spec: "Spec"
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    board: "Board | None" = None


class Store:
    """The content-addressed folder `.kdcompile/` beside a spec."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.hasher = Hasher(root / "hashes.json")

    def entry(self, stage: str, key: str) -> Path:
        """Where the entry lies, made or not."""
        return self.root / stage / key[:KEY_CHARS]

    def find(self, stage: str, key: str) -> Artifact | None:
        """The finished entry, or None when it is absent or its files are not what was stored."""
        path = self.entry(stage, key)
        try:
            record = json.loads((path / "artifact.json").read_text())
            intact = record["key"] == key and all(
                self.hasher.file(path / name) == sha for name, sha in record["files"].items()
            )
        except (OSError, ValueError, KeyError):
            return None
        if not intact:
            return None
        return Artifact(stage, key, path, record["files"], record["meta"])

    def make(self, stage: str, key: str, build: Callable[[Path], Mapping[str, Any]]) -> Artifact:
        """The entry, built by `build(folder) -> meta` unless it is there already.

        Raises:
            KDError: the store cannot be written.
        """
        with self._locked(stage, key):
            found = self.find(stage, key)
            if found is not None:
                return found
            final = self.entry(stage, key)
            temporary = final.with_name(f".{final.name}.making")
            for leftover in (temporary, final):
                remove_tree(leftover)
            temporary.mkdir(parents=True)
            meta = dict(build(temporary))
            self._seal(temporary, key, meta)
            temporary.rename(final)
            self.hasher.save()
        made = self.find(stage, key)
        assert made is not None, "a sealed entry must be found"
        return made

    def work(self, stage: str, key: str) -> Path:
        """A scratch folder of a step that outlives an interruption (checkpoints)."""
        path = self.root / "work" / f"{stage}-{key[:KEY_CHARS]}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def drop_work(self, stage: str, key: str) -> None:
        """Remove the scratch folder of a finished step."""
        shutil.rmtree(self.root / "work" / f"{stage}-{key[:KEY_CHARS]}", ignore_errors=True)

    def prune(self, keep: Iterable[Artifact]) -> list[Path]:
        """Remove every entry but those in `keep`; says which went."""
        kept = {artifact.path for artifact in keep}
        entries = [
            path
            for path in sorted(self.root.glob("*/*"))
            if path.is_dir() and path not in kept and path.parent.name != "locks"
        ]
        for path in entries:
            remove_tree(path)
        return entries

    def _seal(self, folder: Path, key: str, meta: Mapping[str, Any]) -> None:
        files = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            with path.open("rb") as stream:
                files[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                    stream, "sha256"
                ).hexdigest()
                os.fsync(stream.fileno())
        write_json(folder / "artifact.json", {"key": key, "files": files, "meta": dict(meta)})
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)

    @contextmanager
    def _locked(self, stage: str, key: str) -> Iterator[None]:
        from filelock import FileLock

        try:
            (self.root / stage).mkdir(parents=True, exist_ok=True)
            (self.root / "locks").mkdir(exist_ok=True)
            lock = FileLock(self.root / "locks" / f"{stage}-{key[:KEY_CHARS]}")
            lock.acquire()
        except OSError as error:
            raise KDError(
                "store-readonly",
                f"the artifact store cannot be written: {error.strerror}",
                where=str(self.root),
                fix="make the spec's folder writable, or copy the spec to one that is",
            ) from error
        try:
            yield
        finally:
            lock.release()


def remove_tree(path: Path) -> None:
    """Remove a folder of read-only files, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
