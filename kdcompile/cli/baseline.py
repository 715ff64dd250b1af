"""`baseline`: baselines kept in a repository, by device class, with who changed them and why."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.measuring import measuring_options, request_of
from kdcompile.cli.options import as_json, echo_json
from kdcompile.core.errors import KDError, plain
from kdcompile.latency.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdcompile.latency.baseline import Baseline
    from kdcompile.stats.samples import Samples

PATH = click.Path(path_type=Path)
folder_option = click.option(
    "--folder", type=PATH, help="Of the baselines; .kdcompile-baselines by default."
)
device_option = click.option("--device", metavar="CLASS", help="Class; by default as the device.")
who_option = click.option("--who", help="Your name; by default as git knows you.")
runs_option = click.option("--runs", type=int, help="Measuring runs, at least 3 (3).")
QUANTILES = ("p50_ms", "p90_ms", "p99_ms")


@click.group()
def baseline() -> None:
    """Keep latency baselines in a repository: DEVICECLASS/NAME.json, with their history."""


@baseline.command("init")
@click.argument("artifact", type=PATH)
@click.argument("name", required=False)
@folder_option
@device_option
@who_option
@click.option("--why", default="first baseline", show_default=True, help="For the history.")
@runs_option
@measuring_options
@as_json
def init_baseline(
    artifact: Path,
    name: str | None,
    folder: Path | None,
    device: str | None,
    who: str | None,
    why: str,
    runs: int | None,
    as_json: bool,
    **measuring: Any,
) -> None:
    """Measure ARTIFACT three times and keep it as NAME (by default the artifact's)."""
    from kdcompile.latency import baseline_store

    given, folder = Request(**request_of(measuring)), folder or baseline_store.FOLDER
    called = baseline_store.check_name(name or baseline_store.slug(artifact.stem), "baseline")
    if device is not None:  # before anything is measured; else as soon as the device is known
        _refuse_existing(
            folder / baseline_store.check_name(device, "class") / f"{called}.json", artifact
        )

    def place(samples: "Samples") -> Path:
        of = device or baseline_store.device_class(samples.runs[0].environment)
        file = folder / of / f"{called}.json"
        _refuse_existing(file, artifact)
        return file

    samples = _measure(given, artifact, runs, None, place)
    _write(samples, artifact, place(samples), who, why, None, as_json)


@baseline.command("update")
@click.argument("artifact", type=PATH)
@click.argument("name", required=False)
@folder_option
@device_option
@who_option
@click.option("--why", required=True, help="For the history: what changed, and that it may.")
@click.option("--add", is_flag=True, help="Keep the runs that are there: one more occasion.")
@runs_option
@measuring_options
@as_json
def update_baseline(
    artifact: Path,
    name: str | None,
    folder: Path | None,
    device: str | None,
    who: str | None,
    why: str,
    add: bool,
    runs: int | None,
    as_json: bool,
    **measuring: Any,
) -> None:
    """Measure ARTIFACT anew in place of a baseline; the old numbers stay in its history.

    With --add what is new joins what is there: an artifact that is not at hand later can be judged
    against only as well as the baseline knows how its device moves from day to day.
    """
    from kdcompile.latency import baseline_store
    from kdcompile.latency.baseline import read_baseline
    from kdcompile.latency.compare import merged

    given, folder = Request(**request_of(measuring)), folder or baseline_store.FOLDER
    if not why.strip():
        raise KDError(
            "baseline-why", "an update without a reason would leave none in the history",
            where="--why", fix='say what changed, such as --why "wider head for the new classes"',
        )  # fmt: skip
    called = name or baseline_store.slug(artifact.stem)
    # a broken one is told before anything is measured
    found = {file: read_baseline(file) for file in baseline_store.find(folder, called, device)}
    file = next(iter(found)) if len(found) == 1 else _here(given, artifact, found, called)

    old = found[file]

    def check(samples: "Samples") -> None:
        if add and samples.sha256 != old.samples.sha256:
            raise _other(artifact, file)
        if device is None:
            _of_class([file], baseline_store.device_class(samples.runs[0].environment), called)

    samples = _measure(given, artifact, runs, old, check, alike=file if add else None)
    if add:
        samples = merged((old.samples, samples))
    _write(samples, artifact, file, who, why, old, as_json)


@baseline.command("show")
@click.argument("name", required=False)
@folder_option
@device_option
@as_json
def show_baseline(name: str | None, folder: Path | None, device: str | None, as_json: bool) -> None:
    """List the baselines, or print the conditions and the history of NAME."""
    from kdcompile.latency import baseline_store
    from kdcompile.latency.baseline import read_baseline

    folder = folder or baseline_store.FOLDER
    found = {file: read_baseline(file) for file in baseline_store.find(folder, name, device)}
    if as_json:
        echo_json({"baselines": [_facts(file, one) for file, one in found.items()]})
    elif not found:
        click.echo(f"no baseline in {folder}: kdcompile baseline init ARTIFACT makes one")
    elif name is None:
        _list(found)
    else:
        for file, one in found.items():
            _tell(file, one)


def _measure(
    given: Request,
    artifact: Path,
    runs: int | None,
    old: "Baseline | None",
    check: "Callable[[Samples], object]",
    alike: Path | None = None,
) -> "Samples":
    """Three runs in the mode of `old`; after the first process of the first `check` may refuse.

    With `alike`, the file of `old`, also under its conditions.
    """
    from kdcompile.latency.baseline import runs_wanted
    from kdcompile.latency.compare import MARGIN, Measurement

    wanted = runs_wanted(runs)
    plan = given.plan(MARGIN, kept=None if old is None else old.mode, runs=wanted)
    theirs = None if old is None or alike is None else old.record
    work = Measurement([given.subject(artifact, old)], plan, theirs, str(alike))
    work.on_first = check
    try:
        return work.all_runs()[0]
    except KDError as error:
        if error.code != "baseline-foreign":
            raise
        fix = "measure under the conditions of the baseline, or leave --add out to replace it"
        raise KDError(error.code, error.message, where=str(alike), fix=fix) from error


def _here(given: Request, artifact: Path, found: "dict[Path, Baseline]", name: str) -> Path:
    """Of several classes the file of this device's, which is asked before anything is measured.

    A machine is of two classes: of its GPU's and of its CPU's. What all of them ran on says which.
    """
    from kdcompile.latency import baseline_store
    from kdcompile.latency.sampler import environment_at
    from kdcompile.latency.subject import common_backend

    subjects = [given.subject(artifact, one) for one in found.values()]
    if len({subject.backend for subject in subjects}) > 1:
        subjects = [given.subject(artifact)]
    environment = environment_at(given.via, common_backend(subjects))
    return _of_class(list(found), baseline_store.device_class(environment), name)


def _other(artifact: Path, file: Path) -> KDError:
    return KDError(
        "baseline-other",
        f"{artifact} is not the artifact that the baseline was measured of",
        where=str(file),
        fix="leave --add out to measure it in place of the old one, or name the old artifact",
    )


def _refuse_existing(file: Path, artifact: Path) -> None:
    if file.exists():
        raise KDError(
            "baseline-exists",
            "there is a baseline of this name and class already",
            where=str(file),
            fix=f"kdcompile baseline update {artifact} {file.stem} --why REASON; or another NAME",
        )


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


def _write(
    samples: "Samples",
    artifact: Path,
    file: Path,
    who: str | None,
    why: str,
    previous: "Baseline | None",
    as_json: bool,
) -> None:
    from kdcompile.latency.baseline import make_baseline
    from kdcompile.latency.baseline_store import author

    made = make_baseline(samples, artifact, file, who or author(), why, previous)
    made.write(file)
    if as_json:
        echo_json(_facts(file, made))
        return
    change = made.history[-1]
    if change["before"] is not None:
        click.echo(f"before: {_numbers(change['before'])}")
    click.echo(f"now:    {_numbers(change['after'])}")
    click.echo(f"wrote {plain(file)}; commit it, and judge with: kdcompile bench ARTIFACT "
               f"--baseline {plain(file)}")  # fmt: skip


def _facts(file: Path, one: "Baseline") -> dict[str, Any]:
    from kdcompile.latency.report import described

    return {
        "file": str(file), "class": file.parent.name, "name": file.stem,
        "reference": one.reference, "kdcompile_version": one.version,
        "samples": dict(described(one.samples)), "history": [dict(c) for c in one.history],
    }  # fmt: skip


def _list(found: "dict[Path, Baseline]") -> None:
    from rich.table import Table

    from kdcompile.cli.bench import show
    from kdcompile.latency.report import summary

    table = Table(box=None, pad_edge=False)
    for column in ("class", "name", "p50 ms", "p90 ms", "p99 ms", "changed", "by"):
        table.add_column(column, justify="right" if column.endswith("ms") else "left")
    for file, one in found.items():
        numbers, change = summary(one.samples), one.history[-1]
        ms = (f"{numbers[key]:.4g}" for key in QUANTILES)
        table.add_row(file.parent.name, file.stem, *ms, change["when"][:10], change["who"])
    show(table, ())


def _tell(file: Path, one: "Baseline") -> None:
    click.echo(
        f"{plain(file)}\nartifact {plain(one.artifact(file))}, SHA-256 {one.samples.sha256[:12]}..."
    )
    for key, value in one.record.items():
        click.echo(f"  {key:<24} {value}")
    for change in one.history:
        click.echo(plain(f"{change['when']} {change['who']}: {change['why']}"))
        click.echo(f"  {_numbers(change['after'])}, SHA-256 {change['sha256'][:12]}...")


def _numbers(found: dict[str, Any]) -> str:
    ms = ", ".join(f"{key[:3]} {found[key]:.4g}" for key in QUANTILES)
    return f"{ms} ms ({found['inferences']} inferences in {found['runs']} runs)"
