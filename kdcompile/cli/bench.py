"""`bench` and `compare`: latencies, and whether they regressed."""

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.again import what_to_type
from kdcompile.cli.ci import CiCommand, ci_options, ci_place, ci_report, ci_stream
from kdcompile.cli.measuring import Measuring, judging_options, measuring_options
from kdcompile.cli.options import as_json, echo_json
from kdcompile.core.errors import EXIT_OK, KDError, plain

if TYPE_CHECKING:
    from kdcompile.latency.baseline import Baseline
    from kdcompile.latency.compare import Plan
    from kdcompile.latency.report import Judged
    from kdcompile.latency.subject import Subject
    from kdcompile.stats.samples import Samples

PATH = click.Path(path_type=Path)


@click.command(cls=CiCommand)
@click.argument("artifact", type=PATH)
@click.option("--baseline", type=PATH, metavar="FILE", help="Judge against this baseline.")
@click.option("--save", type=PATH, metavar="FILE", help="Write a baseline of three or more runs.")
@click.option("--runs", type=int, help="Measuring runs of --save, at least 3.")
@click.option("--reference", type=PATH, metavar="FILE", help="Where the baseline's artifact is.")
@judging_options
@measuring_options
@ci_options
@as_json
def bench(
    artifact: Path,
    baseline: Path | None,
    save: Path | None,
    runs: int | None,
    reference: Path | None,
    margin: str,
    allow: tuple[str, ...],
    until_decided: bool,
    limit: float | None,
    ci: bool,
    ci_folder: Path | None,
    as_json: bool,
    **measuring: Any,
) -> None:
    """Measure the latency of ARTIFACT: an ONNX file, an engine with its record, or a bundle.

    With --baseline the two take turns where the baseline's artifact is at hand, and the exit code
    says whether ARTIFACT regressed: 0 no, 3 yes, 5 undecided.
    """
    from kdcompile.ci.report import in_ci

    given, folder, stream = Measuring(**measuring), ci_place(ci, ci_folder), ci_stream(as_json)
    started = time.monotonic()
    with in_ci(folder, "bench", str(artifact), stream=stream):
        _check_usage(baseline, save, runs, reference, allow, until_decided)
        kept = _kept(baseline)
        _refuse_existing(save)
        wanted = 1 if save is None else runs_wanted(runs)
        plan = given.plan(
            margin, allow, until_decided, limit, None if kept is None else kept.mode, wanted
        )
        subject = given.subject(artifact, kept)
        judged: Judged | None = None
        if kept is None or baseline is None:
            samples = measured(subject, plan)
        else:
            judged = judge(subject, kept, baseline, reference, given, plan)
            samples = judged.candidate
        if save is not None:
            _save(samples, artifact, save)
    seconds = time.monotonic() - started
    advice = None if judged is None else what_to_type(judged, plan)
    _print(samples, judged, save, as_json, advice, subject.target)
    if folder is not None:
        ci_report(judged, samples, folder, str(artifact), seconds, as_json)
    sys.exit(EXIT_OK if judged is None else judged.comparison.exit_code)


def _check_usage(
    baseline: Path | None,
    save: Path | None,
    runs: int | None,
    reference: Path | None,
    allow: tuple[str, ...],
    until_decided: bool,
) -> None:
    """Options of `bench` that do not go together."""
    if until_decided and (save is not None or baseline is None):
        raise click.UsageError("--until-decided needs --baseline, and goes without --save")
    if reference is not None and baseline is None:
        raise click.UsageError("--reference is the artifact of a --baseline: name that too")
    if runs is not None and save is None:
        raise click.UsageError("--runs are those of --save")
    if allow and baseline is None:
        raise click.UsageError("--allow lets a --baseline differ: name that too")


@click.command(cls=CiCommand)
@click.argument("before", metavar="A", type=PATH)
@click.argument("after", metavar="B", type=PATH)
@judging_options
@measuring_options
@ci_options
@as_json
def compare(
    before: Path,
    after: Path,
    margin: str,
    allow: tuple[str, ...],
    until_decided: bool,
    limit: float | None,
    ci: bool,
    ci_folder: Path | None,
    as_json: bool,
    **measuring: Any,
) -> None:
    """Judge the latency of B against that of A, each an artifact or a baseline file (.json).

    Two artifacts are measured in turns; two baselines are compared by their samples; of one each,
    the artifact is measured. Exit code 0: no regression, 3: B is slower, 5: undecided.
    """
    from kdcompile.ci.report import in_ci
    from kdcompile.latency.compare import from_samples, in_turns, of_files

    given, folder, stream = Measuring(**measuring), ci_place(ci, ci_folder), ci_stream(as_json)
    started = time.monotonic()
    with in_ci(folder, "compare", str(after), stream=stream):
        old, new = (_kept(path if is_baseline(path) else None) for path in (before, after))
        mode = next((kept.mode for kept in (old, new) if kept is not None), None)
        plan = given.plan(margin, allow, until_decided, limit, mode)
        note = "A is a baseline: its samples stand for it, which were taken at other times"
        if old is not None and new is not None:
            if until_decided:
                raise click.UsageError("nothing is measured of two baselines: no --until-decided")
            judged = of_files(new.samples, old.samples, plan, f"{before}, {after}")
        elif old is not None:
            judged = from_samples(given.subject(after, old), old.samples, plan, note, str(before))
        elif new is not None:
            raise KDError(
                "compare-order",
                "B is a baseline and A an artifact: a baseline is what is compared with",
                where=f"{before}, {after}",
                fix=f"kdcompile compare {after} {before}",
            )
        elif allow:
            raise click.UsageError("two artifacts are measured alike: nothing for --allow to allow")
        else:
            judged = in_turns(given.subject(after), given.subject(before), plan)
    seconds = time.monotonic() - started
    apart = [None if one is None else (path, one) for path, one in ((before, old), (after, new))]
    _print(judged.candidate, judged, None, as_json, what_to_type(judged, plan, *apart))
    if folder is not None:
        ci_report(judged, judged.candidate, folder, str(after), seconds, as_json, "compare")
    sys.exit(judged.comparison.exit_code)


def is_baseline(path: Path) -> bool:
    """Whether a word of the command line names a baseline and no artifact."""
    return path.suffix == ".json" and not path.is_dir()


def measured(subject: "Subject", plan: "Plan") -> "Samples":
    """The samples of all runs of a plan."""
    from kdcompile.latency.compare import Measurement

    return Measurement([subject], plan).all_runs()[0]


def judge(
    subject: "Subject",
    kept: "Baseline",
    file: Path,
    reference: Path | None,
    given: Measuring,
    plan: "Plan",
) -> "Judged":
    """In turns with the baseline's artifact where it is at hand, else against its samples."""
    from kdcompile.latency.compare import from_samples, in_turns, reference_at_hand

    beside, note = reference_at_hand(kept, file, reference, lambda path: given.subject(path, kept))
    if beside is not None:
        return in_turns(subject, beside, plan, kept.record, str(file))
    return from_samples(subject, kept.samples, plan, note, str(file))


def runs_wanted(runs: int | None, option: str = "--runs") -> int:
    """How many runs a baseline is measured in, as an option says.

    Raises:
        KDError: `baseline-runs`, too few.
    """
    from kdcompile.latency.baseline import MIN_RUNS

    if runs is None or runs >= MIN_RUNS:
        return runs or MIN_RUNS
    raise KDError(
        "baseline-runs",
        f"a baseline of {runs} measuring runs cannot tell their spread",
        where=option,
        fix=f"leave {option} out, or give {MIN_RUNS} or more",
    )


def _refuse_existing(save: Path | None) -> None:
    """Before anything is measured."""
    from kdcompile.latency.baseline_store import check_writable

    if save is None:
        return
    check_writable(save)
    if save.exists():
        raise KDError(
            "baseline-exists",
            "there is a file of this name, whose samples and history would be lost",
            where=str(save),
            fix="name another file, or move this one away; kdcompile baseline keeps a history",
        )


def _kept(file: Path | None) -> "Baseline | None":
    from kdcompile.latency.baseline import read_baseline

    return None if file is None else read_baseline(file)


def _save(samples: "Samples", artifact: Path, file: Path) -> None:
    from kdcompile.latency.baseline import make_baseline
    from kdcompile.latency.baseline_store import author

    make_baseline(samples, artifact, file, author(), "kdcompile bench --save").write(file)


def _print(
    samples: "Samples",
    judged: "Judged | None",
    saved: Path | None,
    as_json: bool,
    advice: str | None,
    target: str | None = None,
) -> None:
    """The report of a measurement, for people or as one JSON document.

    `target` is the device that a bundle is for.
    """
    from kdcompile.latency import report as table
    from kdcompile.latency.report import described

    if as_json:
        found = {"candidate": described(samples), "decision": None, "exit_code": EXIT_OK}
        found |= {} if judged is None else judged.to_json() | {"to_decide": advice}
        echo_json(found | {"saved": None if saved is None else str(saved)})
        return
    reference = None if judged is None else judged.reference
    click.echo(plain(table.title(samples, reference)))
    for line in table.places(samples, reference, target):
        click.echo(plain(line))
    if judged is None:
        lines = table.in_flight(samples) + table.disturbed(samples) + table.takes(samples)
        show(table.latencies(samples), lines)
        if saved is None:
            click.echo("nothing to compare with: --save FILE makes a baseline of this")
    else:
        wanted = [] if advice is None else [f"to decide: {advice}"]
        show(table.verdict(judged), [*table.remarks(judged), *wanted])
    if saved is not None:
        click.echo(f"saved {plain(saved)}, {len(samples.runs)} runs")


def show(table: Any, lines: Iterable[str]) -> None:
    """A table and lines below it on standard output, unwrapped where nobody looks."""
    from rich.console import Console

    out = sys.stdout
    console = Console(file=out, width=None if out.isatty() else 200, highlight=False)
    console.print(table)
    for line in lines:
        click.echo(line)
