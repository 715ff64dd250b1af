"""The board's `device.json` taken into the bundle: verdicts, measurements, engine.

The bundle keeps `device/device.json` and `device/report_host.json`, the report as the build wrote
it: a second merge starts from that one again, so that a later board replaces an earlier one. A
signature is of the older manifest, and goes; sign again.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from kdcompile.bundle import form, manifest, product
from kdcompile.bundle.signature import open_bundle
from kdcompile.bundle.swap import beside, swap
from kdcompile.bundle.trust import Trust
from kdcompile.config.gates import Gates
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256, write_json, write_text
from kdcompile.core.readers import hold, parse_json, read_json, read_text
from kdcompile.core.report import Report

Judge = Callable[
    [Report, Mapping[str, Any], Mapping[str, Any], Any, str], tuple[Report, Mapping[str, str]]
]
FOLDER = "device"
KIT = "kit/kit.json"
RECORD, HOST = f"{FOLDER}/device.json", f"{FOLDER}/report_host.json"
LARGEST = 256 * 1024 * 1024
EXAMPLES = re.compile(r'<h2 id="examples">.*?(?=<h2 |</main>|</body>)', re.DOTALL)


def merge(
    bundle: Path,
    device_json: Path,
    engine: Path | None,
    judge: Judge,
    trust: Trust | None = None,
    unverified: bool = False,
    content: bytes | None = None,
) -> Report:
    """Judge a board's record, and rewrite the bundle with it, whole or not at all.

    Args:
        bundle: the folder of the bundle that the board's kit is of.
        device_json: the record.
        engine: the engine that ships, or the folder of it; None leaves it out.
        judge: `kdcompile.gates.from_board.judge_board`.
        trust: as for `open_bundle`.
        unverified: the result is to be signed though nothing vouched for the bundle; the manifest
            says so then, and after every later merge.
        content: of the bundle's manifest, where its signature was checked.

    Returns:
        The report with the board's verdicts.

    Raises:
        KDError: `bundle-*`, `signature-*`; `kit-missing`; `device-unreadable`; `merge-mismatch`,
            the record is of another kit or engine; what `judge` raises; `output-unwritable`.
    """
    found = open_bundle(bundle, trust, content)
    if KIT not in found.manifest["files"]:
        raise KDError(
            "kit-missing",
            f"{bundle.name} has no build kit: its target is built by kdcompile itself",
            where=str(bundle.absolute()),
            fix="merge into a bundle for a board, such as kdcompile build --target jetson makes",
        )
    value, where = _read(device_json), str(device_json)
    if not isinstance(value, dict) or value.get("kit") != found.manifest["files"][KIT]["sha256"]:
        raise KDError(
            "merge-mismatch",
            f"{device_json.name} was not made by this bundle's kit",
            where=where,
            fix="copy kit/ of this bundle to the board and run build_engine.py there",
        )
    source = HOST if HOST in found.manifest["files"] else "report.json"
    report = found.report(source)
    kit, gates = _held(found, KIT, form.MergedKit), _held(found, "kit/gates.json", Gates)
    merged, ships = judge(report, kit, gates, value, where)
    engine = None if engine is None else _engine(engine, ships)
    _rewrite(found, merged, device_json, source, engine, unverified)
    return merged


def _held(found: manifest.Bundle, name: str, of: type[BaseModel]) -> Any:
    """A document of the bundle, of the form that it must have."""
    with found.reading(name) as content:
        value = parse_json(content)
        hold(of, value)
    return value


def _read(path: Path) -> Any:
    """Parsed JSON of a file that anybody may have written."""
    try:
        return read_json(path, LARGEST)
    except OSError as error:
        reason = str(error.strerror)
    except ValueError as error:
        reason = str(error)
    raise KDError(
        "device-unreadable",
        f"{path.name} cannot be read: {reason}",
        where=str(path.absolute()),
        fix="copy out/device.json from the board again",
    )


def _engine(given: Path, ships: Mapping[str, str]) -> Path:
    """The engine's file, which must be the one that the record names."""
    if not ships:
        raise KDError(
            "merge-mismatch",
            "the board ships no engine: none passed there",
            where=str(given),
            fix="merge without --engine; the report then says what failed",
        )
    ((name, sha),) = ships.items()
    path = given / name if given.is_dir() else given
    if not path.is_file():
        raise _wrong_engine(path, "is not there", name)
    if file_sha256(path) != sha:
        raise _wrong_engine(path, "is not the engine of device.json", name)
    side = _sidecar(path)
    if not side.is_file():
        raise _wrong_engine(side, "is not there, and nothing opens an engine without it", name)
    try:
        of = read_json(side)["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        of = None
    if of != sha:
        raise _wrong_engine(side, f"is no record of {path.name}", name)
    return path


def _sidecar(engine: Path) -> Path:
    return engine.with_name(f"{engine.name}.json")


def _wrong_engine(path: Path, what: str, name: str) -> KDError:
    return KDError(
        "merge-mismatch",
        f"{path.name} {what}",
        where=str(path),
        fix=f"copy out/{name} and out/{name}.json from the board, of the same run",
    )


def _rewrite(
    found: manifest.Bundle,
    report: Report,
    record: Path,
    source: str,
    engine: Path | None,
    unverified: bool,
) -> None:
    """A new folder beside the old one, and then in its place."""
    bundle = found.folder.resolve()
    try:
        with beside(bundle) as temporary:
            fresh = temporary / "new"
            others = (manifest.ENGINE, f"{manifest.ENGINE}.json")  # not of this record
            for name in found.manifest["files"]:
                if name not in others:
                    _copy(found.file(name), fresh / name)
                    found.check(name, fresh / name)
            if source != HOST:
                _copy(fresh / source, fresh / HOST)
            _copy(record, fresh / RECORD)
            if engine is not None:
                _copy(engine, fresh / manifest.ENGINE)
                _copy(_sidecar(engine), fresh / f"{manifest.ENGINE}.json")
            write_json(fresh / "report.json", report.to_json())
            with found.reading(source):  # what reports and records hold beside their form is free
                _render(fresh, report)
                product.refresh_product(fresh, report)
            about, backend = found.manifest, found.manifest["backend"]
            choice = {"precision": about["precision"], "backend": backend["name"],
                      "backend_version": backend["version"]}  # fmt: skip
            marked = unverified or about.get("resigned_unverified", False)
            manifest.write_manifest(fresh, report, about["task"], choice, about.get("spec"), marked)
            swap(fresh, bundle)
    except OSError as error:
        raise KDError(
            "output-unwritable",
            f"the bundle cannot be rewritten: {error.strerror}",
            where=str(bundle),
            fix="free the disk or the folder's permissions",
        ) from error


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _render(folder: Path, report: Report) -> None:
    """`report.md` and `report.html`; the pictures of photos are kept from the page that was."""
    from kdcompile.bundle import render
    from kdcompile.bundle.report import page  # matplotlib

    lines = read_text(folder / "metrics.jsonl").splitlines()
    metrics = [parse_json(line, finite=False) for line in lines if line.strip()]
    before = EXAMPLES.search(read_text(folder / "report.html"))
    text = page.html(report, folder, metrics)
    if before is not None:
        text = EXAMPLES.sub(lambda _: before.group(), text, count=1)
    write_text(folder / "report.md", render.markdown(report))
    write_text(folder / "report.html", text)
