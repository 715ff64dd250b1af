"""The bundle stage: everything that ships, in one folder, and its copy into `dist/`."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcompile.bundle import carried_code, form, manifest, product, python_sample, user_files
from kdcompile.bundle.place import check_place, spec_id
from kdcompile.bundle.swap import beside, swap, sweep_beside
from kdcompile.config.spec import Spec
from kdcompile.config.step import Step
from kdcompile.core.disk import disk_full, is_full
from kdcompile.core.errors import KDError
from kdcompile.core.files import json_text, write_json, write_text
from kdcompile.core.readers import read_json
from kdcompile.core.report import Report
from kdcompile.core.store import Artifact, Store
from kdcompile.remote.frame import TASK
from kdcompile.tasks.task import task_of

if TYPE_CHECKING:
    from kdcompile.targets import Target

log = logging.getLogger("kdcompile")
COPIED = (
    ("compile", "model.onnx"),
    ("compile", "preprocess.json"),
    ("calibrate", "calibration.json"),
    ("calibrate", "audit.json"),
    ("distill", "metrics.jsonl"),
)
CARRIED = ("kit/", "parity/", "nms/")  # for a board, for `bisect`, and another form of it


def run(step: Step, store: Store, target: "Target") -> Artifact:
    """Gather the bundle from the stages before it; `manifest.json` is written last.

    Reads the `task` section of the spec, and its name: what was verified may be a copy's of another
    folder. The report names the target.
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
        report = replace(
            Report.from_json(inputs["verify"].json("report.json")), name=step.spec.name
        )
        write_json(folder / "report.json", report.to_json())
        _write_reports(folder, report, inputs["verify"].path)
        task = task_of(step.spec)
        write_text(folder / python_sample.NAME, python_sample.text(task.like))
        if task.is_dense:
            product.write_tiles(folder)
        write_task(folder, step.spec)
        product.write_product(folder, report)
        choice = inputs["compile"].json("choice.json")
        manifest.write_manifest(folder, report, task.like, choice)
        return {
            "name": report.name,
            "target": report.target,
            "verdict": report.verdict,
            "exit_code": report.exit_code,
        }

    return store.make(step.stage, step.key, build)


def write_task(folder: Path, spec: Spec) -> None:
    """The task's settings, and the code of the user's that makes answers of outputs."""
    settings, kind = task_of(spec).settings(), spec.task.kind
    decode = str(settings.get("decode") or "")
    if ":" in kind:
        settings = settings | {carried_code.KEY: kind}
    for name in (kind, decode):
        if ":" in name:
            user_files.write_code(folder, name, spec.folder)
    if settings:
        write_json(folder / TASK, settings)


def _write_reports(folder: Path, report: Report, examples: Path) -> None:
    from kdcompile.bundle import render
    from kdcompile.bundle.report import page  # matplotlib: a cache hit needs none

    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines if line.strip()]
    write_text(folder / "report.md", render.markdown(report))
    write_text(folder / "report.html", page.html(report, examples, metrics))


def install(
    artifact: Artifact, destination: Path, spec: Path | None = None, force: bool = False
) -> Path:
    """Copy a bundle from the store to where the user wants it, whole or not at all.

    A bundle that is there already and intact is left alone; an older one is replaced.

    Args:
        artifact: what `run` made.
        destination: `dist/NAME-TARGET`, or the folder of `-o`.
        spec: the folder of the spec, whose bundle it is to be from now on.
        force: replace the bundle of another spec.

    Returns:
        The destination, with links resolved.

    Raises:
        KDError: those of `check_place`; `output-unwritable`; `disk-full`.
    """
    destination = destination.resolve()
    sweep_beside(destination)
    installed = _manifest_of(artifact, None if spec is None else spec_id(spec, destination))
    if _is_same(installed, destination):
        return destination
    own = {*artifact.files, *manifest.UNLISTED}
    check_place(destination, spec, artifact.path.parent, own, force)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with beside(destination) as temporary:
            fresh = temporary / "new"
            for name in artifact.files:
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.file(name), fresh / name)
            write_text(fresh / manifest.NAME, installed)
            swap(fresh, destination)
    except OSError as error:
        if is_full(error):
            raise disk_full(str(destination)) from error
        raise KDError(
            "output-unwritable",
            f"the bundle cannot be written: {error.strerror}",
            where=str(destination),
            fix="free the disk or the folder's permissions, or name another folder with -o",
        ) from error
    return destination


def _manifest_of(artifact: Artifact, spec: str | None) -> str:
    """The manifest that a bundle is installed with."""
    about = read_json(artifact.file(manifest.NAME))
    del about[form.DIGEST]
    return json_text(form.sealed(about if spec is None else about | {"spec": spec}))


def _is_same(installed: str, destination: Path) -> bool:
    there = destination / manifest.NAME
    return (
        there.is_file()
        and there.read_bytes() == installed.encode()
        and manifest.is_intact(destination)
    )
