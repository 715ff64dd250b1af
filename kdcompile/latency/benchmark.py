"""Latency verbs `bench` and `compare`, and their result: samples and a comparison."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from pydantic import Field

from kdcompile.core.errors import EXIT_OK, KDError
from kdcompile.core.progress import OnProgress, working
from kdcompile.latency.compatibility import Difference
from kdcompile.latency.frame_times import FrameTimes
from kdcompile.latency.request import Measuring, Request
from kdcompile.stats.comparison import Comparison

if TYPE_CHECKING:
    from kdcompile.latency.baseline import Baseline
    from kdcompile.latency.compare import Plan
    from kdcompile.latency.report import Judged
    from kdcompile.stats.samples import Samples

AnyPath = str | PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """JSON document of a measurement without a reference.

    Args:
        candidate: the samples in numbers.
        decision: none.
        exit_code: 0.
        saved: file of the baseline that was written.
        frame: the whole frame of a bundle's sample, where images were given.
    """

    candidate: Mapping[str, Any]
    decision: None
    exit_code: int
    saved: Path | None
    frame: FrameTimes | None


@dataclass(frozen=True, kw_only=True)
class Compared(Comparison):
    """JSON document of a measurement that is compared with a reference.

    Args:
        code: exit code of the decision.
        candidate: its samples in numbers.
        reference: its samples in numbers.
        allowed: conditions that differ and were allowed by name.
        notes: what a reader must know, such as that the reference was measured earlier.
        looks: how often the verdict was computed while measuring.
        to_decide: a command that would decide an undecided comparison, or why there is none.
        saved: file of the baseline that was written.
        frame: the whole frame of a bundle's sample, where images were given; it decides nothing.
    """

    code: Annotated[int, Field(serialization_alias="exit_code")]
    candidate: Mapping[str, Any]
    reference: Mapping[str, Any]
    allowed: tuple[Difference, ...]
    notes: tuple[str, ...]
    looks: int
    to_decide: str | None
    saved: Path | None
    frame: FrameTimes | None


@dataclass(frozen=True)
class Benchmark:
    """Latencies of an artifact, and what a comparison of them decided.

    Args:
        samples: of the artifact; of the later one, where two are compared.
        plan: how it was measured.
        compared: the comparison with a reference, where there is one.
        saved: the file of the baseline that was written.
        target: of a bundle, the device that it is for.
        baselines: of `compare`, what was read as a baseline, with its file.
        frame: the whole frame of a bundle's sample, where images were given.
    """

    samples: "Samples"
    plan: "Plan"
    compared: "Judged | None" = None
    saved: Path | None = None
    target: str | None = None
    baselines: "tuple[tuple[Path, Baseline] | None, ...]" = ()
    frame: FrameTimes | None = None

    @property
    def decision(self) -> str | None:
        """`regressed`, `improved`, `equivalent` or `inconclusive`; None without a reference."""
        return None if self.compared is None else self.compared.comparison.decision

    @property
    def exit_code(self) -> int:
        """3 for a regression, 5 for no decision, 0 otherwise."""
        return EXIT_OK if self.compared is None else self.compared.comparison.exit_code

    def document(self, to_decide: str | None = None) -> Measured | Compared:
        """The result with numbers in place of the samples, as `--json` prints it."""
        from kdcompile.latency.report import described

        candidate, found = described(self.samples), self.compared
        if found is None:
            return Measured(
                candidate=candidate, decision=None, exit_code=EXIT_OK, saved=self.saved,
                frame=self.frame,
            )  # fmt: skip
        return Compared(
            **vars(found.comparison), code=self.exit_code, candidate=candidate,
            reference=described(found.reference), allowed=tuple(found.allowed),
            notes=tuple(found.notes), looks=found.looks, to_decide=to_decide, saved=self.saved,
            frame=self.frame,
        )  # fmt: skip


def is_baseline(path: Path) -> bool:
    """Whether a path names the file of a baseline and no artifact."""
    return path.suffix == ".json" and not path.is_dir()


def bench(
    artifact: AnyPath,
    *,
    baseline: AnyPath | None = None,
    reference: AnyPath | None = None,
    save: AnyPath | None = None,
    runs: int | None = None,
    why: str | None = None,
    margin: float = 0.03,
    allow: Sequence[str] = (),
    limit: float | None = None,
    images: Sequence[AnyPath] = (),
    allow_code: bool = False,
    on_progress: OnProgress | None = None,
    **measuring: Unpack[Measuring],
) -> Benchmark:
    """Measure the latency of an ONNX file, an engine with its record, or a bundle.

    Args:
        artifact: its path.
        baseline: file of a baseline to compare with.
        reference: where the baseline's artifact is now; by default where it was.
        save: file of a baseline to write.
        runs: measuring runs of that baseline, at least 3; or, where the samples of `baseline` are
            compared with, of the artifact.
        why: reason for which an existing baseline is replaced by `save`; kept in its history.
        margin: change of the median that counts as none, a share.
        allow: conditions that may differ from the baseline's.
        limit: seconds in which to go on until there is a decision; None measures once.
        images: of a bundle: image files, folders of them or test packs, on which the whole frame of
            its sample is timed too, at the same place.
        allow_code: with images, run the decode that the bundle carries, with every right of yours.
        on_progress: is called with each `Event`.
        **measuring: `Measuring`.

    Raises:
        KDError: `bench-arguments`; `frame-images`, `sample-failed`, `bundle-code`; what
            `kdcompile bench` ends with.
    """
    from kdcompile.latency.baseline import make_baseline, read_baseline, runs_wanted
    from kdcompile.latency.baseline_store import author, check_new, check_writable
    from kdcompile.latency.compare import Measurement

    if baseline is None and (reference or allow or limit or (save is None and runs)):
        raise KDError(
            "bench-arguments",
            "reference, allow and limit need a baseline, and runs needs a baseline or save",
            where="kdcompile.bench",
            fix="name the baseline or the file to save, or leave the others out",
        )
    given, path = Request(**measuring), Path(artifact)
    pictures = [Path(image) for image in images]
    whole = _whole_frame(path, pictures, given, allow_code) if pictures else None
    file, new = (None if one is None else Path(one) for one in (baseline, save))
    kept = None if file is None else read_baseline(file)
    previous = None if new is None or not (why and new.exists()) else read_baseline(new)
    if new is not None:
        (check_new if previous is None else check_writable)(new)
    wanted = (runs or 1) if new is None else runs_wanted(runs)
    plan = given.plan(margin, allow, limit, None if kept is None else kept.mode, wanted)
    subject = given.subject(path, kept)
    with working(on_progress):
        if kept is None or file is None:
            judged, samples = None, Measurement([subject], plan).all_runs()[0]
        else:
            there = None if reference is None else Path(reference)
            judged = given.compare(subject, kept, file, there, plan)
            samples = judged.candidate
        frame = None if whole is None else whole()
    if new is not None:
        reason = why or "kdcompile bench --save"
        make_baseline(samples, path, new, author(), reason, previous).write(new)
    return Benchmark(samples, plan, judged, new, subject.target, frame=frame)


def _whole_frame(
    path: Path, images: Sequence[Path], given: Request, allow_code: bool
) -> Callable[[], FrameTimes]:
    """What measures the frame of a bundle, once everything that it needs was read."""
    from kdcompile.bundle.signature import open_bundle
    from kdcompile.latency.frame import EFFORT, measure_frame
    from kdcompile.latency.frame_sample import pictures_at, shipped_in

    if not path.is_dir():
        raise KDError(
            "bench-arguments",
            f"{path.name} is no bundle, whose sample takes images",
            where="--images",
            fix="name a bundle's folder, or leave the images out",
        )
    shipped = shipped_in(open_bundle(path, given.trust()), allow_code)
    pictures = pictures_at(images)
    effort = EFFORT if given.seconds is None else replace(EFFORT, seconds=given.seconds)
    return lambda: measure_frame(shipped, pictures, given.via, effort)


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
        KDError: `compare-order`, `bench-arguments`; what `kdcompile compare` ends with.
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
    if old is not None and new is not None and given.trust() is not None:
        raise KDError(
            "bench-arguments",
            "two baselines are compared by their samples: no bundle is opened",
            where="--trusted, --expect",
            fix="leave them out, or name a bundle's folder",
        )
    with working(on_progress):
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
