"""The verbs of kdcompile as functions: what the command line, the pytest plug-in and CI call.

A verb that builds takes a spec: the path of a file or folder, a loaded `Spec`, or the networks and
data sets themselves, by keyword (`Inputs`). An error that the caller can fix is a `KDError`.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from kdcompile.core.errors import KDError
from kdcompile.core.optional import silence
from kdcompile.core.progress import Event as Event
from kdcompile.core.progress import Metric as Metric
from kdcompile.core.progress import OnProgress, working
from kdcompile.core.progress import StageFinished as StageFinished
from kdcompile.core.progress import StageHit as StageHit
from kdcompile.core.progress import StageStarted as StageStarted
from kdcompile.core.progress import StepDone as StepDone
from kdcompile.core.report import Report, overall
from kdcompile.core.store import Artifact
from kdcompile.deployed import Built as Built
from kdcompile.deployed import check_bundle as check_bundle
from kdcompile.deployed import load_bundle as load_bundle
from kdcompile.deployed import merge as merge
from kdcompile.deployed import run as run
from kdcompile.deployed import trust_of
from kdcompile.latency.benchmark import Benchmark as Benchmark
from kdcompile.latency.benchmark import bench as bench
from kdcompile.latency.benchmark import compare as compare
from kdcompile.latency.keep_baseline import baselines as baselines
from kdcompile.latency.keep_baseline import init_baseline as init_baseline
from kdcompile.latency.keep_baseline import update_baseline as update_baseline
from kdcompile.passes.inputs import AnyPath, Inputs, spec_of
from kdcompile.trackers.tracker import Trackers
from kdcompile.trackers.tracking import Tracking

if TYPE_CHECKING:
    from kdcompile.bundle.manifest import Bundle
    from kdcompile.bundle.trust import Trust
    from kdcompile.config.spec import Spec
    from kdcompile.debug.show import Bisection, Parity
    from kdcompile.debug.variants import Ladder
    from kdcompile.passes.manager import Plan
    from kdcompile.passes.show import Planned

silence()  # before any verb loads a library, or code of the user's that does
log = logging.getLogger("kdcompile")
LADDER_IMAGES = 16  # of the validation split


@dataclass(frozen=True)
class Bundled:
    """A bundle's files as the stage wrote them.

    Args:
        path: their folder.
        meta: what the stage found.
        test_pack: path and number of images of the test pack, where one was written.
        signed_by: fingerprint of the public key, where the files were signed.
    """

    path: Path
    meta: Mapping[str, Any]
    test_pack: dict[str, Any] | None = None
    signed_by: str | None = None


def planned(spec: "AnyPath | Spec | None", inputs: Inputs, via: str | None = None) -> "Plan":
    """The plan of a spec as the stages take it.

    Raises:
        KDError: those of reading a spec, of writing objects and of `make_plan`.
    """
    from kdcompile.passes.manager import make_plan

    return make_plan(spec_of(spec, inputs), via)


def plan(
    spec: "AnyPath | Spec | None" = None,
    *,
    via: str | None = None,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> "Planned":
    """What a build would do and cost, before anything is trained.

    Args:
        spec: a path, a loaded spec, or None for objects or the current folder.
        via: where engines are built and timed, such as `ssh://user@board`; None for this machine.
        on_progress: is called with each `Event`.
        **inputs: `Inputs`.

    Raises:
        KDError: what `kdcompile plan` ends with.
    """
    from kdcompile.passes.show import describe

    with working(on_progress):
        return describe(planned(spec, inputs, via))


def build(
    spec: "AnyPath | Spec | None" = None,
    *,
    out: AnyPath | None = None,
    sign: AnyPath | None = None,
    via: str | None = None,
    require_device: bool = False,
    force: bool = False,
    trusted: AnyPath | None = None,
    expect: Mapping[str, str] | None = None,
    track: Trackers = (),
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> Built:
    """Run every stage that is not in the store yet, and write the bundle.

    Args:
        spec: a path, a loaded spec, or None for objects or the current folder.
        out: the bundle's folder; `dist/NAME-TARGET` by default.
        sign: an Ed25519 private key to sign the bundle with.
        via: where engines are built and timed, such as `ssh://user@board`; None for this machine.
        require_device: gates that wait for the device make `exit_code` 5.
        force: replace the bundle of another spec that is at `out`.
        trusted: public key that must have signed the earlier bundle of `gates.previous`.
        expect: what that bundle must say of itself, as for `load_bundle`.
        track: experiment trackers to report to, as `mlflow:URI`, `tensorboard`, `wandb`, or objects
            of `kdcompile.trackers.tracker.Tracker`; they change nothing of the build.
        on_progress: is called with each `Event`.
        **inputs: `Inputs`.

    Returns:
        The report; `verdict` and `exit_code` say whether the gates passed.

    Raises:
        KDError: what `kdcompile build` ends with. A gate that fails is no error.
    """
    from kdcompile.bundle.place import check_place
    from kdcompile.bundle.signature import sign_bundle
    from kdcompile.passes.bundle import install

    with Tracking(track, on_progress) as tracking, working(tracking.note) as ran:
        work = _trusting(planned(spec, inputs, via), trusted, expect)
        name = f"{work.spec.name}-{work.spec.target.replace('@', '-')}"
        given = Path("dist") / name if out is None else Path(out)
        made = work.store.root / "bundle"
        check_place(given.resolve(), work.spec.folder, made, force=force)  # before the work
        tracking.start(name, work.spec.model_dump(mode="json", exclude_none=True))
        artifact = work.make("bundle")
        install(artifact, given, work.spec.folder, force)
        signed = None if sign is None else sign_bundle(given, Path(sign))
        report = _decided(artifact, require_device)
        tracking.report(report, given)
    return Built(**vars(report), bundle=given, ran=tuple(ran), signed_by=signed)


def run_stage(
    stage: str,
    spec: "AnyPath | Spec | None" = None,
    *,
    via: str | None = None,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> Artifact:
    """One stage by name, and before it those that it needs; arguments as of `build`.

    Returns:
        Its files in the store, which are read-only, and what it found (`meta`).

    Raises:
        KDError: any stage's.
    """
    with working(on_progress):
        return planned(spec, inputs, via).make(stage)


def search(
    spec: "AnyPath | Spec | None" = None,
    *,
    via: str | None = None,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> Artifact:
    """Design the student for the target; see `run_stage`."""
    return run_stage("search", spec, via=via, on_progress=on_progress, **inputs)


def distill(
    spec: "AnyPath | Spec | None" = None,
    *,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> Artifact:
    """Train the student from the teacher; see `run_stage`."""
    return run_stage("distill", spec, on_progress=on_progress, **inputs)


def export(
    spec: "AnyPath | Spec | None" = None,
    *,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> Artifact:
    """Write the student as ONNX; see `run_stage`."""
    return run_stage("export", spec, on_progress=on_progress, **inputs)


def calibrate(
    spec: "AnyPath | Spec | None" = None,
    *,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> Artifact:
    """Find int8 ranges and insert Q/DQ pairs; see `run_stage`."""
    return run_stage("calibrate", spec, on_progress=on_progress, **inputs)


def verify(
    spec: "AnyPath | Spec | None" = None,
    *,
    via: str | None = None,
    require_device: bool = False,
    trusted: AnyPath | None = None,
    expect: Mapping[str, str] | None = None,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> Report:
    """Measure and decide the gates of a build; arguments as of `build`.

    Raises:
        KDError: any stage's.
    """
    with working(on_progress):
        work = _trusting(planned(spec, inputs, via), trusted, expect)
        artifact = work.make("verify")
    # made by the folder that this one is a copy of, perhaps
    return replace(_decided(artifact, require_device), name=work.spec.name)


def bundle(
    spec: "AnyPath | Spec | None" = None,
    *,
    out: AnyPath | None = None,
    sign: AnyPath | None = None,
    test_pack: AnyPath | None = None,
    force: bool = False,
    via: str | None = None,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> Bundled:
    """Write a bundle's files, and a test pack for a board; other arguments as of `build`.

    Args:
        spec: as of `build`.
        out: copies the files to this folder, which `sign` needs.
        sign: an Ed25519 private key to sign them with.
        force: as of `build`.
        test_pack: a folder for the test images and the teacher, which a board's own gates need.
        via: as of `build`.
        on_progress: is called with each `Event`.
        **inputs: `Inputs`.

    Raises:
        KDError: any stage's; those of `install`, `sign_bundle` and `pack_build`.
    """
    from kdcompile.bundle.signature import sign_bundle
    from kdcompile.passes.bundle import install
    from kdcompile.passes.testpack import pack_build

    with working(on_progress):
        work = planned(spec, inputs, via)
        artifact = work.make("bundle")
        folder = work.spec.folder
        path = artifact.path if out is None else install(artifact, Path(out), folder, force)
        signed = None if sign is None or out is None else sign_bundle(Path(out), Path(sign))
        packed = None
        if test_pack is not None:
            about = pack_build(Path(test_pack), work.spec, work.found(), work.target.name)
            packed = {"path": str(test_pack), "photos": len(about["names"])}
    return Bundled(path, artifact.meta, packed, signed)


def parity(
    spec: "AnyPath | Spec | Bundle | None" = None,
    *,
    via: str | None = None,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> "Parity":
    """Compare each variant of a network (PyTorch, ONNX, int8, engine) with the one before it.

    Args:
        spec: as of `build`, whose stages up to `compile` run where needed; or a `Bundle`.
        via: where engines are built and run; None for this machine.
        on_progress: is called with each `Event`.
        **inputs: `Inputs`.

    Raises:
        KDError: any stage's; of a bundle `parity-incomplete`, `engine-missing`.
    """
    from kdcompile.debug import show

    with working(on_progress), open_ladder(spec, via, inputs) as ladder:
        return show.parity(ladder)


def bisect(
    spec: "AnyPath | Spec | Bundle | None" = None,
    *,
    rung: str | None = None,
    limit: float | None = None,
    via: str | None = None,
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> "Bisection":
    """Find the first tensor at which a variant leaves the one before it; arguments as of `parity`.

    Args:
        spec: as of `parity`.
        rung: name of the variant; by default the first that fails.
        limit: relative error of a tensor that still agrees; by default that of the arithmetic.
        via: as of `parity`.
        on_progress: is called with each `Event`.
        **inputs: `Inputs`.

    Raises:
        KDError: those of `parity`; `rung-unknown`, `rung-absent`, `bisect-*`.
    """
    from kdcompile.debug import show

    with working(on_progress), open_ladder(spec, via, inputs) as ladder:
        return show.bisect(ladder, rung, limit)


@contextmanager
def open_ladder(
    spec: "AnyPath | Spec | Bundle | None", via: str | None, inputs: Inputs
) -> "Iterator[Ladder]":
    """The variants of a spec or a bundle, with the places of their engines open.

    Where the export is refused for its outputs, the variants up to there.
    """
    from kdcompile.bundle.manifest import Bundle
    from kdcompile.debug.sources import export_ladder, open_bundle_ladder, spec_ladder

    if isinstance(spec, Bundle):
        opened = open_bundle_ladder(spec, via)
    else:
        plan = planned(spec, inputs, via)
        try:
            plan.make("compile")
            opened = spec_ladder(plan.spec, plan.target, plan.found(), plan.board, LADDER_IMAGES)
        except KDError as error:
            if error.code != "export-parity":
                raise
            log.warning("the export is refused: %s", error.message)
            distilled = plan.found()["distill"]
            opened = export_ladder(plan.spec, plan.target, distilled, LADDER_IMAGES)
    with opened as ladder:
        yield ladder


def _decided(artifact: Artifact, require_device: bool) -> Report:
    """The report of a stage, with the exit code that the caller's requirement gives."""
    report = Report.from_json(artifact.json("report.json"))
    return replace(report, exit_code=overall(report.gates, require_device=require_device)[1])


def _trusting(work: "Plan", key: AnyPath | None, expect: Mapping[str, str] | None) -> "Plan":
    """The plan whose stages demand this of an earlier bundle, which is held against it here."""
    trust = trust_of(key, expect)
    check_previous(work.spec, trust)
    return work if trust is None else replace(work, trust=trust)


def check_previous(spec: "Spec", trust: "Trust | None" = None) -> None:
    """Refuse an earlier bundle that cannot be compared, before hours of work.

    Raises:
        KDError: those of `refuse_early`.
    """
    if spec.gates.previous is not None or trust is not None:
        from kdcompile.gates.reference_bundle import refuse_early

        refuse_early(spec, trust)
