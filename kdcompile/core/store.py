"""The content-addressed store of artifacts, which are what the stages of a build make.

An entry is a folder `STAGE/KEY` with an `artifact.json` that lists every file with its SHA-256.
It is made in a temporary folder under a lock, then renamed, so that a reader never sees half of it.
What a process that died left behind is removed by the next build (`Store.sweep`).
"""

import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompile.core.disk import disk_error, disk_full, is_failed, is_full, sync_folder, unread
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher, sweep_files, sweep_scratch, write_json
from kdcompile.core.locks import OWNER, holder, if_free, locked
from kdcompile.core.readers import read_json

log = logging.getLogger("kdcompile")
KEY_CHARS = 24
MAKING, RECORD, LOCKS, WORK, TEMPORARY = ".making", "artifact.json", "locks", "work", "tmp"


def canonical(value: Any) -> bytes:
    """JSON bytes that do not depend on key order."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str).encode()


def digest(value: Any) -> str:
    """SHA-256 of a JSON-like value, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


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
        record = self._record(path, key)
        if isinstance(record, str):
            return None
        return Artifact(stage, key, path, record["files"], record["meta"])

    def make(self, stage: str, key: str, build: Callable[[Path], Mapping[str, Any]]) -> Artifact:
        """The entry, built by `build(folder) -> meta` unless it is there already.

        Raises:
            KDError: `store-readonly`, `store-locks`, `disk-full`, `disk-failed`; what `build`
                raises.
        """
        with self._locked(stage, key):
            found = self.find(stage, key)
            if found is not None:
                return found
            final = self.entry(stage, key)
            if final.is_dir():
                why = self._record(final, key)
                log.warning("%s: the store's entry is damaged and is made again: %s", stage, why)
            with self._making(final) as temporary:
                meta = dict(build(temporary))
                self._seal(temporary, key, meta)
                remove_tree(final)
                temporary.rename(final)
                for folder in (final.parent, self.root):
                    sync_folder(folder)
            made = self.find(stage, key)
            if made is None:
                why = self._record(final, key)
                raise unread(final, why if isinstance(why, str) else "it could be a moment later")
        self.save_hashes()
        return made

    def save_hashes(self) -> None:
        """Keep what the hasher learnt; where that is not possible, the next run starts slower."""
        if not self.hasher.is_dirty:
            return
        with suppress(OSError, KDError):
            (self.root / LOCKS).mkdir(parents=True, exist_ok=True)
            with if_free(self.root / LOCKS / "hashes") as free:
                if free:  # else another process keeps what it learnt
                    _remove_files(self.root.glob(".hashes.json.*.tmp"))
                    self.hasher.save()

    def sweep(self) -> None:
        """Remove what processes that died left: half an entry, a name, a finished step's scratch.

        A checkpoint of a step that is not finished stays, for the next build goes on from it.
        """
        with suppress(OSError):  # where nothing can be removed, nothing can be made either
            for path in sorted(self.root.glob(f"*/.*{MAKING}")):
                self._remove_if_free(path, path.parent.name, path.name[1 : -len(MAKING)])
            for path in sorted(self.root.glob(f"{WORK}/*-*")):
                stage, key = path.name.rsplit("-", 1)
                if (self.root / stage / key / RECORD).is_file():
                    self._remove_if_free(path, stage, key)
            for folder in (self.root, *self.root.glob("*/"), *self.root.glob(f"{WORK}/**/")):
                sweep_files(folder)
            for place in (self.temporary, Path(tempfile.gettempdir())):
                sweep_scratch(place)
            for name in sorted((self.root / LOCKS).glob(f"*{OWNER}")):
                with if_free(name.with_suffix("")) as free:
                    if free:
                        name.unlink(missing_ok=True)

    @property
    def temporary(self) -> Path:
        """The folder for temporary folders of a command, there or not."""
        return self.root / TEMPORARY

    def work(self, stage: str, key: str) -> Path:
        """A scratch folder of a step that outlives an interruption (checkpoints)."""
        path = self.root / WORK / f"{stage}-{key[:KEY_CHARS]}"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error
        return path

    def drop_work(self, stage: str, key: str) -> None:
        """Remove the scratch folder of a finished step."""
        shutil.rmtree(self.root / WORK / f"{stage}-{key[:KEY_CHARS]}", ignore_errors=True)

    def prune(self, keep: Iterable[Artifact]) -> list[Path]:
        """Remove every entry but those in `keep`; says which went.

        Raises:
            KDError: `store-busy`, a build is making an entry.
        """
        kept = {artifact.path for artifact in keep}
        entries = [
            path
            for path in sorted(self.root.glob("*/*"))
            if path.is_dir() and path not in kept and path.parent.name not in (LOCKS, TEMPORARY)
        ]
        with self._nobody_builds():
            for path in entries:
                remove_tree(path)
        return entries

    def _record(self, path: Path, key: str) -> dict[str, Any] | str:
        """What an entry says of itself, or why that is not so."""
        try:
            record = read_json(path / RECORD, finite=False)
            if record["key"] != key or record.pop("sha256") != digest(record):
                return f"{RECORD} is not as it was written"
            dict(record["meta"])
            for name, sha in record["files"].items():
                if self.hasher.file(path / name) != sha:
                    return f"{name} is not as it was written"
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return f"{RECORD} cannot be read"
        return dict(record)

    @contextmanager
    def _making(self, final: Path) -> Iterator[Path]:
        """A folder to make an entry in, gone where that fails.

        Raises:
            KDError: `disk-full`, `not-permitted`.
        """
        temporary = final.with_name(f".{final.name}{MAKING}")
        try:
            remove_tree(temporary)
            temporary.mkdir(parents=True)
            yield temporary
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            found = disk_error(error, self.root)
            if found is None:
                raise
            raise found from error

    def _remove_if_free(self, path: Path, stage: str, key: str) -> None:
        (self.root / LOCKS).mkdir(exist_ok=True)
        with if_free(self._lock(stage, key)) as free:
            if free:
                remove_tree(path)

    @contextmanager
    def _nobody_builds(self) -> Iterator[None]:
        """Hold the locks of all steps.

        Raises:
            KDError: `store-busy`.
        """
        with ExitStack() as held:
            locks = (self.root / LOCKS).glob("*-*")
            for path in sorted(path for path in locks if path.suffix != OWNER):
                if not held.enter_context(if_free(path)):
                    raise KDError(
                        "store-busy",
                        f"{holder(path)} makes {path.name.rsplit('-', 1)[0]} in this store",
                        where=str(self.root),
                        fix="wait for that build, or stop it; then run kdcompile clean again",
                    )
            yield

    def _seal(self, folder: Path, key: str, meta: Mapping[str, Any]) -> None:
        """Write the record, and have all of it on the disk before the entry gets its name."""
        files = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            with path.open("rb") as stream:
                files[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                    stream, "sha256"
                ).hexdigest()
                os.fsync(stream.fileno())
        record = json.loads(json.dumps({"key": key, "files": files, "meta": dict(meta)}))
        write_json(folder / RECORD, record | {"sha256": digest(record)})
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
            else:
                sync_folder(path)

    def _lock(self, stage: str, key: str) -> Path:
        return self.root / LOCKS / f"{stage}-{key[:KEY_CHARS]}"

    @contextmanager
    def _locked(self, stage: str, key: str) -> Iterator[None]:
        with ExitStack() as held:
            try:
                (self.root / stage).mkdir(parents=True, exist_ok=True)
                (self.root / LOCKS).mkdir(exist_ok=True)
                held.enter_context(locked(self._lock(stage, key), f"makes {stage}"))
            except OSError as error:
                raise self._unwritable(error) from error
            yield

    def _unwritable(self, error: OSError) -> KDError:
        if is_full(error) or is_failed(error):
            return disk_error(error, self.root) or disk_full(str(self.root))
        return KDError(
            "store-readonly",
            f"the artifact store cannot be written: {error.strerror}",
            where=str(self.root),
            fix="make the spec's folder writable, or copy the spec to one that is",
        )


def _remove_files(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a folder of read-only files, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
