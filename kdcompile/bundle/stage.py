"""The bundle stage: everything that ships, in one folder, and its copy into `dist/`."""

import json
import logging
import shutil
from collections.abc import Mapping, Set
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcompile.artifact import Artifact, Step, Store, write_text
from kdcompile.bundle import manifest, product
from kdcompile.bundle.swap import beside, swap
from kdcompile.disk import disk_full, is_full
from kdcompile.errors import KDError
from kdcompile.report import Report

if TYPE_CHECKING:
    from kdcompile.targets import Target

log = logging.getLogger("kdcompile")
COPIED = (
    ("compile", "model.onnx"),
    ("export", "preprocess.json"),
    ("calibrate", "calibration.json"),
    ("calibrate", "audit.json"),
    ("verify", "report.json"),
    ("distill", "metrics.jsonl"),
)
CARRIED = ("kit/", "parity/")  # what a board builds from, or what `bisect` looks at


def run(step: Step, store: Store, target: "Target") -> Artifact:
    """Gather the bundle from the stages before it; `manifest.json` is written last.

    Reads the `task` section of the spec. The report names the build and the target.
    """

    def build(folder: Path) -> Mapping[str, Any]:
        inputs = step.inputs
        for stage, name in COPIED:
            shutil.copyfile(inputs[stage].file(name), folder / name)
        for name in inputs["compile"].files:
            if name.startswith(CARRIED):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(inputs["compile"].file(name), folder / name)
        product.copy_engine(folder, inputs["compile"])
        report = Report.from_json(inputs["verify"].json("report.json"))
        _write_reports(folder, report, inputs["verify"].path)
        sample = files("kdcompile.bundle").joinpath("templates/infer.py")
        write_text(folder / "infer.py", sample.read_text(encoding="utf-8"))
        product.write_product(folder, report)
        choice = inputs["compile"].json("choice.json")
        manifest.write_manifest(folder, report, step.spec.task.kind, choice)
        return {
            "name": report.name,
            "target": report.target,
            "verdict": report.verdict,
            "exit_code": report.exit_code,
        }

    return store.make(step.stage, step.key, build)


def _write_reports(folder: Path, report: Report, examples: Path) -> None:
    from kdcompile.bundle import render  # matplotlib: a build that is a cache hit needs none

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines if line.strip()]
    write_text(folder / "report.md", render.markdown(report))
    write_text(folder / "report.html", render.html(report, examples, metrics))


def install(artifact: Artifact, destination: Path) -> Path:
    """Copy a bundle from the store to where the user wants it, whole or not at all.

    A bundle that is there already and intact is left alone; an older one is replaced.

    Args:
        artifact: what `run` made.
        destination: `dist/NAME-TARGET`, or the folder of `-o`.

    Returns:
        The destination, with links resolved.

    Raises:
        KDError: `output-not-bundle`, the folder holds something that no build put there;
            `output-unwritable`; `disk-full`.
    """
    destination = destination.resolve()
    if _is_same(artifact, destination):
        return destination
    _refuse_foreign(destination, {*artifact.files, *manifest.UNLISTED})
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with beside(destination) as temporary:
            fresh = temporary / "new"
            for name in artifact.files:
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.file(name), fresh / name)
            swap(fresh, destination)
    except OSError as error:
        if is_full(error):
            raise disk_full(str(destination)) from error
        raise KDError(
            "output-unwritable",
            f"the bundle cannot be written: {error.strerror}",
            where=str(destination),
            fix="free the disk or the folder's permissions, or name another place with -o",
        ) from error
    return destination


def _is_same(artifact: Artifact, destination: Path) -> bool:
    there = destination / manifest.NAME
    return (
        there.is_file()
        and there.read_bytes() == artifact.file(manifest.NAME).read_bytes()
        and manifest.is_intact(destination)
    )


def _refuse_foreign(destination: Path, own: Set[str]) -> None:
    """Raise unless the destination is absent, empty, or holds nothing but an older bundle.

    One whose manifest a power cut has torn is taken for a bundle if it has no file beside `own`.
    """
    if not destination.exists():
        return
    if not destination.is_dir():
        raise _foreign(destination, "is a file")
    present = {p.relative_to(destination).as_posix() for p in destination.rglob("*")}
    if not present:
        return
    try:
        known: Set[str] = {*manifest.read_manifest(destination)["files"], *manifest.UNLISTED}
    except KDError as error:
        if manifest.NAME not in present or error.code != "bundle-corrupt":
            what = f"is not empty and not a bundle ({error.message})"
            raise _foreign(destination, what) from error
        known = own
        log.warning("bundle: %s is damaged and is replaced: %s", destination.name, error.message)
    for name in sorted(present):
        path = destination / name
        ours = name in known or "__pycache__" in path.parts  # Python's, of scripts that ran
        if not ours and (path.is_symlink() or not path.is_dir()):
            raise _foreign(destination, f"holds {name}, which no build put there")


def _foreign(destination: Path, what: str) -> KDError:
    return KDError(
        "output-not-bundle",
        f"{destination.name} {what}; it will not be replaced",
        where=str(destination),
        fix="move it away, or name another folder with -o",
    )
