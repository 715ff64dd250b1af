"""Verbs that measure, renew and list the baselines of a repository, by device class and name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from pydantic import Field

from kdcompile.core.errors import KDError
from kdcompile.core.progress import OnProgress, working
from kdcompile.latency import baseline_store as store
from kdcompile.latency.baseline import Baseline, make_baseline, read_baseline, runs_wanted
from kdcompile.latency.report import described
from kdcompile.latency.request import Measuring, Request

if TYPE_CHECKING:
    from kdcompile.latency.benchmark import AnyPath
    from kdcompile.stats.samples import Samples


@dataclass(frozen=True)
class Kept:
    """A baseline in its file.

    Args:
        file: in a folder per device class.
        device_class: name of the class, `class` in JSON.
        name: of the baseline.
        reference: path of the measured artifact, relative to the file's folder.
        kdcompile_version: that wrote the file.
        samples: the latencies in numbers.
        history: who changed it, when and why; the oldest change first.
        baseline: the content of the file, not part of the JSON document.
    """

    file: Path
    device_class: Annotated[str, Field(serialization_alias="class")]
    name: str
    reference: str
    kdcompile_version: str
    samples: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    baseline: Annotated[Baseline, Field(exclude=True)]


@dataclass(frozen=True)
class Baselines:
    """The baselines of a folder."""

    baselines: tuple[Kept, ...]


def init_baseline(
    artifact: "AnyPath",
    name: str | None = None,
    *,
    folder: "AnyPath | None" = None,
    device: str | None = None,
    who: str | None = None,
    why: str = "first baseline",
    runs: int | None = None,
    on_progress: OnProgress | None = None,
    **measuring: Unpack[Measuring],
) -> Kept:
    """Measure an artifact several times and keep its latencies as a new baseline.

    Args:
        artifact: an ONNX file, an engine with its record, or a bundle.
        name: of the baseline; by default that of the artifact.
        folder: of the baselines; `.kdcompile-baselines` by default.
        device: class of the device; by default that of the device that is measured.
        who: makes it; by default as git knows the user.
        why: for the history.
        runs: measuring runs, at least 3.
        on_progress: is called with each `Event`.
        **measuring: `Measuring`.

    Raises:
        KDError: `baseline-exists`, `baseline-name`, `baseline-runs`; those of measuring.
    """
    given, path, base = Request(**measuring), Path(artifact), Path(folder or store.FOLDER)
    called = store.check_name(name or store.slug(path.stem), "baseline")

    def file_of(device_class: str) -> Path:
        file = base / device_class / f"{called}.json"
        if file.exists():
            raise KDError(
                "baseline-exists",
                "there is a baseline of this name and class already",
                where=str(file),
                fix=f"kdcompile baseline update {path} {called} --why REASON; or another NAME",
            )
        return file

    def place(samples: "Samples") -> Path:
        return file_of(device or store.device_class(samples.runs[0].environment))

    if device is not None:  # before anything is measured; else as soon as the device is known
        file_of(store.check_name(device, "class"))
    with working(on_progress):
        samples = _measured(given, path, runs, None, place)
        return _written(samples, path, place(samples), who, why)


def update_baseline(
    artifact: "AnyPath",
    name: str | None = None,
    *,
    why: str,
    folder: "AnyPath | None" = None,
    device: str | None = None,
    who: str | None = None,
    add: bool = False,
    runs: int | None = None,
    on_progress: OnProgress | None = None,
    **measuring: Unpack[Measuring],
) -> Kept:
    """Measure an artifact again and replace its baseline; the old numbers stay in the history.

    Args:
        artifact: as of `init_baseline`, like the arguments that are not listed here.
        name: of the baseline, or `CLASS/NAME`.
        why: what changed, for the history.
        folder: of the baselines.
        device: class of the device, where the name exists for several.
        who: changes it.
        add: keep the runs that the baseline has, so that it covers variation between sessions.
        runs: measuring runs, at least 3.
        on_progress: is called with each `Event`.
        **measuring: `Measuring`.

    Raises:
        KDError: `baseline-why`, `baseline-missing`, `baseline-class`, `baseline-other`,
            `baseline-foreign`; those of reading it and of measuring.
    """
    from kdcompile.latency.compare import merged

    given, path = Request(**measuring), Path(artifact)
    if not why.strip():
        raise KDError(
            "baseline-why",
            "an update without a reason would leave none in the history",
            where="--why",
            fix='say what changed, such as --why "wider head for the new classes"',
        )
    called = name or store.slug(path.stem)
    files = store.find(Path(folder or store.FOLDER), called, device)
    found = {file: read_baseline(file) for file in files}  # before anything is measured
    with working(on_progress):
        file = files[0] if len(files) == 1 else _of_this_device(given, path, found, called)
        old = found[file]

        def check(samples: "Samples") -> None:
            if add and samples.sha256 != old.samples.sha256:
                raise KDError(
                    "baseline-other",
                    f"{path} is not the artifact that the baseline was measured of",
                    where=str(file),
                    fix="leave --add out to replace the baseline, or name the old artifact",
                )
            if device is None:
                _of_class([file], store.device_class(samples.runs[0].environment), called)

        samples = _measured(given, path, runs, old, check, file if add else None)
        if add:
            samples = merged((old.samples, samples))
        return _written(samples, path, file, who, why, old)


def baselines(
    name: str | None = None, *, folder: "AnyPath | None" = None, device: str | None = None
) -> Baselines:
    """The baselines of a folder, of all classes or one, with all names or one.

    Raises:
        KDError: `baseline-missing`; those of `read_baseline`.
    """
    files = store.find(Path(folder or store.FOLDER), name, device)
    return Baselines(tuple(_kept(file, read_baseline(file)) for file in files))


def _measured(
    given: Request,
    artifact: Path,
    runs: int | None,
    old: Baseline | None,
    check: "Callable[[Samples], object]",
    equal_to: Path | None = None,
) -> "Samples":
    """Several runs, in the mode of `old`; `check` may refuse after the first process.

    With `equal_to`, the file of `old`, they must have its conditions too.
    """
    from kdcompile.latency.compare import MARGIN, Measurement

    plan = given.plan(MARGIN, kept=None if old is None else old.mode, runs=runs_wanted(runs))
    theirs = None if old is None or equal_to is None else old.record
    work = Measurement([given.subject(artifact, old)], plan, theirs, str(equal_to))
    work.on_first = check
    try:
        return work.all_runs()[0]
    except KDError as error:
        if error.code == "baseline-foreign":
            error.fix = "measure under the baseline's conditions, or leave --add out to replace it"
        raise


def _of_this_device(
    given: Request, artifact: Path, found: Mapping[Path, Baseline], name: str
) -> Path:
    """Of several classes the file of this device's, which is asked before anything is measured.

    A machine is of two classes: of its GPU's and of its CPU's. What all of them ran on says which.
    """
    from kdcompile.latency.sampler import environment_at
    from kdcompile.latency.subject import common_backend

    subjects = [given.subject(artifact, one) for one in found.values()]
    if len({subject.backend for subject in subjects}) > 1:
        subjects = [given.subject(artifact)]
    environment = environment_at(given.via, common_backend(subjects))
    return _of_class(list(found), store.device_class(environment), name)


def _of_class(found: list[Path], here: str, name: str) -> Path:
    """The file of this device's class: another device's numbers must not go into it."""
    for file in found:
        if file.parent.name == here:
            return file
    classes = ", ".join(file.parent.name for file in found)
    raise KDError(
        "baseline-class",
        f"{name} is kept for {classes}, and this device is of the class {here}",
        where=str(found[0].parent.parent),
        fix=f"name the class: --device {found[0].parent.name}; or kdcompile baseline init",
    )


def _written(
    samples: "Samples",
    artifact: Path,
    file: Path,
    who: str | None,
    why: str,
    previous: Baseline | None = None,
) -> Kept:
    made = make_baseline(samples, artifact, file, who or store.author(), why, previous)
    made.write(file)
    return _kept(file, made)


def _kept(file: Path, one: Baseline) -> Kept:
    samples = described(one.samples)
    return Kept(
        file, file.parent.name, file.stem, one.reference, one.version, samples, one.history, one
    )
