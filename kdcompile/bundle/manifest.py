"""`manifest.json`: what a bundle holds, with the SHA-256 of every file, and the check of it."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from kdcompile import __version__
from kdcompile.artifact import file_sha256, write_json
from kdcompile.errors import KDError
from kdcompile.report import Report

SCHEMA = 1
NAME = "manifest.json"
SIGNATURE = "manifest.sig"
UNLISTED = (NAME, SIGNATURE)  # what cannot have its hash in the manifest
ENGINE = "model.engine"
IGNORED_FOLDER = "__pycache__"  # Python makes it beside the kit's scripts when they run
REQUIRED = ("schema", "kdcompile_version", "name", "target", "task", "model", "preprocess", "files")


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
        """The values of `kdcompile.data.prepare.Preprocess.from_json`."""
        value: dict[str, Any] = json.loads(self.file(self.manifest["preprocess"]).read_text())
        return value

    def report(self) -> Report:
        """The report of the build."""
        return Report.from_json(json.loads(self.file("report.json").read_text()))

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            KDError: `bundle-corrupt`, the manifest lists no such file.
        """
        if name not in self.manifest["files"]:
            raise _corrupt(self.folder / name, "the manifest lists no such file", self.manifest)
        return self.folder / name


def created() -> str:
    """Now in UTC, or the moment that SOURCE_DATE_EPOCH names, for builds that repeat exactly.

    Raises:
        KDError: `epoch-invalid`.
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise KDError(
            "epoch-invalid",
            f"SOURCE_DATE_EPOCH={epoch} is not a time in seconds since 1970",
            where="the environment",
            fix="unset SOURCE_DATE_EPOCH, or set it to $(git log -1 --format=%ct)",
        ) from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def write_manifest(folder: Path, report: Report, task: str, choice: Mapping[str, Any]) -> None:
    """Write `manifest.json` over every other file of `folder`; call it last.

    A signature that is there is of an older manifest, and goes.

    Args:
        folder: the finished content of the bundle.
        report: gives name, target, verdict, the names of the classes and the evidence of each gate.
        task: the task kind, such as `counting`.
        choice: `choice.json` of the compile stage: precision, backend and its version.
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
        "schema": SCHEMA,
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
    }
    write_json(folder / NAME, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone, checked for its form but not against the files.

    Raises:
        KDError: `bundle-missing`, `bundle-version` or `bundle-corrupt`.
    """
    path = folder / NAME
    if not path.is_file():
        what = f"it has no {NAME}" if folder.is_dir() else "there is no such folder"
        raise KDError(
            "bundle-missing",
            f"{folder} is not a bundle: {what}",
            where=str(folder.absolute()),
            fix="kdcompile build, then name the folder that it prints, dist/NAME-TARGET",
        )
    if path.is_symlink():
        raise _corrupt(path, "it is a symbolic link")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _corrupt(path, f"it is not JSON: {error}") from error
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if schema is not None and schema != SCHEMA:
        raise KDError(
            "bundle-version",
            f"the manifest has schema {schema!r}, this kdcompile {__version__} reads {SCHEMA}",
            where=str(path),
            fix=f"install the kdcompile that wrote it ({manifest.get('kdcompile_version')}), "
            "or build the bundle again with this one",
        )
    missing = [key for key in REQUIRED if not isinstance(manifest, dict) or key not in manifest]
    if missing or not isinstance(manifest["files"], dict):
        raise _corrupt(path, f"it lacks {', '.join(missing) or 'a table of files'}")
    return dict(manifest)


def read_bundle(path: Path) -> Bundle:
    """The bundle in a folder, after every file has been checked against its hash.

    Raises:
        KDError: `bundle-missing` (no folder or no manifest), `bundle-version` (another schema),
            or `bundle-corrupt` (a file is changed, missing, extra, a link, or lies outside).
    """
    manifest = read_manifest(path)
    files = manifest["files"]
    for name in files:
        if not _is_inside(name):
            raise _corrupt(path / NAME, f"it names {name!r}, which is not in the bundle", manifest)
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
        expected = record.get("sha256") if isinstance(record, dict) else None
        if file_sha256(path / name) != expected:
            raise _corrupt(path / name, "its SHA-256 is not the manifest's", manifest)
    for key in ("model", "preprocess", "engine"):
        if manifest.get(key) is not None and str(manifest[key]) not in files:
            raise _corrupt(path / NAME, f"its {key}, {manifest[key]!r}, is not listed", manifest)
    return Bundle(path, manifest)


def is_intact(path: Path) -> bool:
    """True when `read_bundle` would accept the folder."""
    try:
        read_bundle(path)
    except KDError:
        return False
    return True


def _walk(folder: Path) -> Iterator[str]:
    """Relative paths of all files; a link or a device is refused wherever it lies."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != IGNORED_FOLDER]
        for name in [*folders, *names]:
            path = Path(root, name)
            if path.is_symlink():
                raise _corrupt(path, "it is a symbolic link")
            if name in names:
                if not path.is_file():
                    raise _corrupt(path, "it is not a regular file")
                yield path.relative_to(folder).as_posix()


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return (
        bool(path.parts)
        and not path.is_absolute()
        and ".." not in path.parts
        and path.as_posix() == name
        and "\\" not in name
        and ":" not in name
        and name not in UNLISTED
    )


def _corrupt(
    path: Path, reason: str, manifest: Mapping[str, Any] | None = None, fix: str = ""
) -> KDError:
    again = f"kdcompile build --target {manifest['target']}" if manifest else "kdcompile build"
    return KDError(
        "bundle-corrupt",
        f"{path.name} is not as the bundle was written: {reason}",
        where=str(path.absolute()),
        fix=fix or f"{again}, in the folder of the spec, makes the bundle again",
    )
