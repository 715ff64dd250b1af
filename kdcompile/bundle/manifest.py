"""`manifest.json`: what a bundle holds, with the SHA-256 of every file, and the check of it."""

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompile import __version__
from kdcompile.bundle import form
from kdcompile.bundle.form import NAME as NAME
from kdcompile.bundle.form import SCHEMA as SCHEMA
from kdcompile.bundle.form import SIGNATURE as SIGNATURE
from kdcompile.bundle.form import UNLISTED as UNLISTED
from kdcompile.bundle.form import created as created
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json
from kdcompile.core.readers import LARGEST_JSON, hold, parse_json, read_bounded
from kdcompile.core.report import Report
from kdcompile.data.preprocess import INPUTS

ENGINE = "model.engine"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose every file was found to be what its manifest says."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the build."""
        return str(self.manifest["name"])

    @property
    def target(self) -> str:
        """The name of the target that it was built for."""
        return str(self.manifest["target"])

    @property
    def model(self) -> Path:
        """The deployed ONNX file."""
        return self.file(self.manifest["model"])

    @property
    def engine(self) -> Path | None:
        """The TensorRT engine, where the build made one; its sidecar is `NAME.json`."""
        name = self.manifest.get("engine")
        return None if name is None else self.file(name)

    @property
    def preprocess(self) -> dict[str, Any]:
        """The values of `kdcompile.data.preprocess.Preprocess.from_json`.

        Raises:
            KDError: `bundle-corrupt`, no network takes such images.
        """
        value: dict[str, Any]
        with self.reading(self.manifest["preprocess"]) as content:
            value = parse_json(content)
            has_rows = isinstance(value, dict) and INPUTS in value
            hold(form.RowPreprocess if has_rows else form.Preprocess, value)
        return value

    def report(self, name: str = "report.json") -> Report:
        """The report of the build.

        Raises:
            KDError: `bundle-corrupt`, it is none of this version.
        """
        with self.reading(name) as content:
            return Report.from_json(parse_json(content, finite=False))  # SQNR may be infinite

    @contextmanager
    def reading(self, name: str) -> Iterator[bytes]:
        """The content of one of its files, for a block that parses it and does nothing else.

        These bytes are those that the manifest names, whatever has become of the file since it was
        checked.

        Raises:
            KDError: `bundle-corrupt`, the manifest lists no such file, or the block fails.
        """
        path = self.file(name)
        try:
            content = read_bounded(path, LARGEST_JSON)
            if hashlib.sha256(content).hexdigest() != self.manifest["files"][name]["sha256"]:
                raise ValueError("its SHA-256 is not the manifest's")
            yield content
        except Exception as error:  # parsers raise nearly anything on arbitrary bytes
            raise _corrupt(path, f"it cannot be read: {error!r}", self.manifest) from error

    def check(self, name: str, copy: Path) -> None:
        """Refuse a copy of one of its files that is not what the manifest names.

        Raises:
            KDError: `bundle-corrupt`.
        """
        if file_sha256(copy) != self.manifest["files"][name]["sha256"]:
            path = self.folder / name
            raise _corrupt(path, "it was changed while it was read", self.manifest)

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            KDError: `bundle-corrupt`, the manifest lists no such file.
        """
        if name not in self.manifest["files"]:
            raise _corrupt(self.folder / name, "the manifest lists no such file", self.manifest)
        return self.folder / name


def write_manifest(
    folder: Path,
    report: Report,
    task: str,
    choice: Mapping[str, Any],
    spec: str | None = None,
    unverified: bool = False,
) -> None:
    """Write `manifest.json` over every other file of `folder`; call it last.

    A signature that is there is of an older manifest, and goes.

    Args:
        folder: the finished content of the bundle.
        report: gives name, target, verdict, the names of the classes and the evidence of each gate.
        task: the task kind, such as `counting`.
        choice: `choice.json` of the compile stage: precision, backend and its version.
        spec: of an installed bundle, its `spec_id`.
        unverified: it was signed anew at some time though no key vouched for it.
    """
    (folder / SIGNATURE).unlink(missing_ok=True)
    files = {
        name: {"sha256": file_sha256(folder / name), "bytes": (folder / name).stat().st_size}
        for name in sorted(_walk(folder))
        if name != NAME
    }
    undecided = ("pending", "skipped")
    evidence = {g.name: g.verdict if g.verdict in undecided else g.evidence for g in report.gates}
    manifest = {
        "kdcompile_version": __version__,
        "name": report.name,
        "target": report.target,
        "created": created(),
        "task": task,
        "classes": (report.details.get("task") or {}).get("classes"),
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "precision": choice["precision"],
        "model": "model.onnx",
        "engine": ENGINE if ENGINE in files else None,
        "preprocess": "preprocess.json",
        "backend": {"name": choice["backend"], "version": choice["backend_version"]},
        "evidence": evidence,
        "files": files,
        **({} if spec is None else {"spec": spec}),
        **({"resigned_unverified": True} if unverified else {}),
    }
    write_json(folder / NAME, form.sealed(manifest))


def manifest_bytes(folder: Path) -> bytes:
    """What lies in a bundle's manifest: read once, for its signature and for its values.

    Raises:
        KDError: `bundle-missing`, `bundle-corrupt` or `bundle-unreadable`.
    """
    path = folder / NAME
    if path.is_symlink():
        raise _corrupt(path, "it is a symbolic link")
    if not path.is_file():
        what = f"it has no {NAME}" if folder.is_dir() else "there is no such folder"
        raise _no_bundle(folder, what)
    try:
        return read_bounded(path, form.LARGEST)
    except ValueError as error:
        raise _corrupt(path, str(error)) from error
    except OSError as error:
        raise _unreadable(error) from error


def read_manifest(folder: Path, content: bytes | None = None) -> dict[str, Any]:
    """The manifest alone, checked for its form but not against the files.

    Args:
        folder: of the bundle.
        content: of the manifest, where it was read.

    Raises:
        KDError: `bundle-missing`, `bundle-version`, `bundle-corrupt` or `bundle-unreadable`.
    """
    path = folder / NAME
    content = manifest_bytes(folder) if content is None else content
    try:
        manifest = parse_json(content)
    except ValueError as error:
        raise _corrupt(path, f"it is not JSON: {error}") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if type(schema) is not int:
        raise _no_bundle(folder, f"its {NAME} has no number of a schema")
    if schema != SCHEMA:
        raise KDError(
            "bundle-version",
            f"the manifest has schema {schema}, this kdcompile {__version__} reads {SCHEMA}",
            where=str(path),
            fix=f"install the kdcompile that wrote it ({manifest.get('kdcompile_version')!s:.40}), "
            "or build the bundle again with this one",
        )
    try:
        form.check_manifest(manifest)
    except ValueError as error:
        raise _corrupt(path, str(error)) from error
    return dict(manifest)


def read_bundle(path: Path, content: bytes | None = None) -> Bundle:
    """The bundle in a folder, after every file has been checked against its hash.

    Args:
        path: the folder.
        content: of its manifest, where it was read.

    Raises:
        KDError: `bundle-missing` (no folder or no manifest), `bundle-version` (another schema),
            `bundle-corrupt` (a file is changed, missing, extra, a link, or lies outside),
            or `bundle-unreadable`.
    """
    manifest = read_manifest(path, content)
    try:
        _check_files(path, manifest)
    except OSError as error:
        raise _unreadable(error) from error
    return Bundle(path, manifest)


def _check_files(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise unless the folder holds the manifest's files and no others."""
    files = manifest["files"]
    present = set(_walk(path))
    for name in sorted(present.difference(files, UNLISTED)):
        raise _corrupt(
            path / name,
            "no build put it there",
            manifest,
            fix="move it out of the bundle's folder",
        )
    for name, record in files.items():
        if name not in present:
            raise _corrupt(path / name, "it is missing", manifest)
        size = (path / name).stat().st_size
        if size != record["bytes"]:  # told before gigabytes are read
            reason = f"it has {size} bytes, by the manifest {record['bytes']}"
            raise _corrupt(path / name, reason, manifest)
        if file_sha256(path / name) != record["sha256"]:
            raise _corrupt(path / name, "its SHA-256 is not the manifest's", manifest)


def is_intact(path: Path) -> bool:
    """True when `read_bundle` would accept the folder."""
    try:
        read_bundle(path)
    except KDError:
        return False
    return True


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths of all files; a link or a device is refused wherever it lies.

    Raises:
        OSError: a folder cannot be read.
    """
    for root, folders, names in os.walk(folder, onerror=_raise):
        for name in [*folders, *names]:
            path = Path(root, name)
            if path.is_symlink():
                raise _corrupt(path, "it is a symbolic link")
            if name in names:
                if not path.is_file():
                    raise _corrupt(path, "it is not a regular file")
                yield path.relative_to(folder).as_posix()


def _raise(error: OSError) -> None:
    raise error


def _corrupt(
    path: Path, reason: str, manifest: Mapping[str, Any] | None = None, fix: str = ""
) -> KDError:
    again = "kdcompile build"
    if manifest:
        again += f" --target {shlex.quote(manifest['target'])}"
    return KDError(
        "bundle-corrupt",
        f"{path.name} is not as the bundle was written: {reason}",
        where=str(path.absolute()),
        fix=fix or f"{again}, in the folder of the spec, makes the bundle again",
    )


def _no_bundle(folder: Path, what: str) -> KDError:
    return KDError(
        "bundle-missing",
        f"{folder} is not a bundle: {what}",
        where=str(folder.absolute()),
        fix="kdcompile build, then name the folder that it prints, dist/NAME-TARGET",
    )


def _unreadable(error: OSError) -> KDError:
    return KDError(
        "bundle-unreadable",
        f"a part of the bundle cannot be read: {error.strerror}",
        where=str(error.filename),
        fix="give yourself the rights to read it: chmod -R u+rX on the bundle's folder",
    )
