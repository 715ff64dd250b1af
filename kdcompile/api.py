"""The verbs of kdcompile as functions: what the command line, the pytest plug-in and CI call.

A verb that builds takes a spec: the path of a file or folder, a loaded `Spec`, or the networks and
data sets themselves, by keyword (`Inputs`). An error that the caller can fix is a `KDError`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from kdcompile.core.disk import disk_error
from kdcompile.core.errors import KDError
from kdcompile.core.progress import Event as Event
from kdcompile.core.progress import Metric as Metric
from kdcompile.core.progress import OnProgress, StageStarted, reporting_to
from kdcompile.core.progress import StageFinished as StageFinished
from kdcompile.core.progress import StageHit as StageHit
from kdcompile.core.progress import StepDone as StepDone
from kdcompile.core.report import Report, overall
from kdcompile.core.store import Artifact
from kdcompile.latency.request import Benchmark, Measuring, Request, is_baseline
from kdcompile.passes.inputs import AnyPath, Inputs, spec_of

if TYPE_CHECKING:
    from kdcompile.bundle.manifest import Bundle
    from kdcompile.config.spec import Spec
    from kdcompile.debug.reference_outputs import BundleCheck
    from kdcompile.passes.manager import Plan
    from kdcompile.passes.show import Planned


@dataclass(frozen=True, kw_only=True)
class Built(Report):
    """The report of a build, and where its bundle is.

    Args:
        bundle: the bundle's folder.
        ran: the stages that ran this time; none where every one was a cache hit.
        signed_by: fingerprint of the public key, where the bundle was signed.
    """

    bundle: Path
    ran: tuple[str, ...] = ()
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

    with _working(on_progress):
        return describe(planned(spec, inputs, via))


def build(
    spec: "AnyPath | Spec | None" = None,
    *,
    out: AnyPath | None = None,
    sign: AnyPath | None = None,
    via: str | None = None,
    require_device: bool = False,
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

    with _working(on_progress) as ran:
        work = planned(spec, inputs, via)
        check_previous(work.spec)
        name, target = work.spec.name, work.spec.target
        given = Path("dist") / f"{name}-{target.replace('@', '-')}" if out is None else Path(out)
        made = work.store.root / "bundle"
        check_place(given.resolve(), work.spec.folder, made)  # before the work
        artifact = work.make("bundle")
        install(artifact, given, work.spec.folder)
        signed = None if sign is None else sign_bundle(given, Path(sign))
    report = _decided(artifact, require_device)
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
    with _working(on_progress):
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
    on_progress: OnProgress | None = None,
    **inputs: Unpack[Inputs],
) -> Report:
    """Measure and decide the gates of a build; arguments as of `build`.

    Raises:
        KDError: any stage's.
    """
    with _working(on_progress):
        work = planned(spec, inputs, via)
        check_previous(work.spec)
        artifact = work.make("verify")
    # made by the folder that this one is a copy of, perhaps
    return replace(_decided(artifact, require_device), name=work.spec.name)


def bench(
    artifact: AnyPath,
    *,
    baseline: AnyPath | None = None,
    reference: AnyPath | None = None,
    save: AnyPath | None = None,
    runs: int | None = None,
    margin: float = 0.03,
    allow: Sequence[str] = (),
    limit: float | None = None,
    on_progress: OnProgress | None = None,
    **measuring: Unpack[Measuring],
) -> Benchmark:
    """Measure the latency of an ONNX file, an engine with its record, or a bundle.

    Args:
        artifact: its path.
        baseline: file of a baseline to compare with.
        reference: where the baseline's artifact is now; by default where it was.
        save: file of a baseline to write.
        runs: measuring runs of that baseline.
        margin: change of the median that counts as none, a share.
        allow: conditions that may differ from the baseline's.
        limit: seconds in which to go on until there is a decision; None measures once.
        on_progress: is called with each `Event`.
        **measuring: `Measuring`.

    Raises:
        KDError: `bench-arguments`; what `kdcompile bench` ends with.
    """
    from kdcompile.latency.baseline import make_baseline, read_baseline, runs_wanted
    from kdcompile.latency.baseline_store import author, check_new
    from kdcompile.latency.compare import Measurement

    if (baseline is None and (reference or allow or limit)) or (save is None and runs):
        raise KDError(
            "bench-arguments",
            "reference, allow and limit need a baseline, and runs needs save",
            where="kdcompile.bench",
            fix="name the baseline or the file to save, or leave the others out",
        )
    given, path = Request(**measuring), Path(artifact)
    file, new = (None if one is None else Path(one) for one in (baseline, save))
    kept = None if file is None else read_baseline(file)
    if new is not None:
        check_new(new)
    wanted = 1 if new is None else runs_wanted(runs)
    plan = given.plan(margin, allow, limit, None if kept is None else kept.mode, wanted)
    subject = given.subject(path, kept)
    with _working(on_progress):
        if kept is None or file is None:
            judged, samples = None, Measurement([subject], plan).all_runs()[0]
        else:
            there = None if reference is None else Path(reference)
            judged = given.compare(subject, kept, file, there, plan)
            samples = judged.candidate
    if new is not None:
        make_baseline(samples, path, new, author(), "kdcompile bench --save").write(new)
    return Benchmark(samples, plan, judged, new, subject.target)


def compare(
    before: AnyPath,
    after: AnyPath,
    *,
    margin: float = 0.03,
    allow: Sequence[str] = (),
    limit: float | None = None,
    on_progress: OnProgress | None = None,
    **measuring: Unpack[Measuring],
) -> Benchmark:
    """Whether an artifact, or a baseline's file, is slower than another one.

    Two artifacts are measured interleaved; two baselines are compared by their samples; of one
    each, the artifact is measured. Arguments as of `bench`.

    Raises:
        KDError: `compare-order`; what `kdcompile compare` ends with.
    """
    from kdcompile.latency.baseline import read_baseline
    from kdcompile.latency.compare import from_samples, in_turns, of_files

    given, paths = Request(**measuring), (Path(before), Path(after))
    old, new = (read_baseline(path) if is_baseline(path) else None for path in paths)
    mode = next((kept.mode for kept in (old, new) if kept is not None), None)
    plan = given.plan(margin, allow, limit, mode)
    if old is None and new is not None:
        raise KDError(
            "compare-order",
            "B is a baseline and A an artifact: a baseline is what is compared with",
            where=f"{before}, {after}",
            fix=f"kdcompile compare {after} {before}",
        )
    with _working(on_progress):
        if old is None:
            judged = in_turns(given.subject(paths[1]), given.subject(paths[0]), plan)
        elif new is None:
            note = "A is a baseline: its samples stand for it, which were taken at other times"
            subject = given.subject(paths[1], old)
            judged = from_samples(subject, old.samples, plan, note, str(before))
        else:
            judged = of_files(new.samples, old.samples, plan, f"{before}, {after}")
    apart = [None if kept is None else (p, kept) for p, kept in zip(paths, (old, new), strict=True)]
    return Benchmark(judged.candidate, plan, judged, baselines=tuple(apart))


def load_bundle(folder: AnyPath, *, trusted: AnyPath | None = None) -> "Bundle":
    """A bundle, after every file was checked against its manifest.

    Args:
        folder: of the bundle.
        trusted: public key that must have signed it; by default that of $KDCOMPILE_TRUSTED_KEY.

    Raises:
        KDError: `bundle-missing`, `bundle-corrupt`, `bundle-version`, `signature-wrong`, ...
    """
    from kdcompile.bundle.signature import open_bundle

    return open_bundle(Path(folder), None if trusted is None else Path(trusted))


def check_bundle(bundle: "AnyPath | Bundle", *, via: str | None = None) -> "BundleCheck":
    """Run a bundle's network on the inputs that it carries, against the outputs of the build.

    Args:
        bundle: its folder, or what `load_bundle` returned.
        via: where its engine is loaded and run; None for its ONNX file, on this machine.

    Raises:
        KDError: those of `load_bundle`; `engine-missing`, `engine-mismatch`, ...
    """
    from kdcompile.debug.reference_outputs import check_outputs

    found = load_bundle(bundle) if isinstance(bundle, str | PathLike) else bundle
    return check_outputs(found, via)


def _decided(artifact: Artifact, require_device: bool) -> Report:
    """The report of a stage, with the exit code that the caller's requirement gives."""
    report = Report.from_json(artifact.json("report.json"))
    return replace(report, exit_code=overall(report.gates, require_device=require_device)[1])


def check_previous(spec: "Spec") -> None:
    """Refuse an earlier bundle that cannot be compared, before hours of work.

    Raises:
        KDError: `bundle-missing`, ...; `baseline-task`, `baseline-classes`, `baseline-test-set`.
    """
    if spec.gates.previous is not None:
        from kdcompile.gates.reference_bundle import refuse_early

        refuse_early(spec)


@contextmanager
def _working(on_progress: OnProgress | None) -> Iterator[list[str]]:
    """Report events; an error of the disk becomes a `KDError`.

    Yields:
        The names of the stages that have run, which grows.
    """
    ran: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, StageStarted):
            ran.append(event.stage)
        if on_progress is not None:
            on_progress(event)

    try:
        with reporting_to(note):
            yield ran
    except Exception as error:
        found = disk_error(error)
        if found is None:
            raise
        raise found from error
