"""Commands `bench` and `compare`: latencies, and whether they regressed."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kdcompile.cli.again import what_to_type
from kdcompile.cli.ci import CiCommand, ci_options, ci_place, ci_report, ci_stream
from kdcompile.cli.measuring import judging_options, measuring_options, request_of
from kdcompile.cli.options import PATH, as_json
from kdcompile.cli.terminal import echo_json, show_table
from kdcompile.core.errors import plain

if TYPE_CHECKING:
    from kdcompile.latency.benchmark import Benchmark


@click.command(cls=CiCommand)
@click.argument("artifact", type=PATH)
@click.option("--baseline", type=PATH, metavar="FILE", help="Compare with this baseline.")
@click.option("--save", type=PATH, metavar="FILE", help="Write a baseline of three or more runs.")
@click.option("--runs", type=int, help="Measuring runs of --save, at least 3 (default 3).")
@click.option("--reference", type=PATH, metavar="FILE", help="Where the baseline's artifact is.")
@click.option(
    "--images",
    type=PATH,
    multiple=True,
    metavar="PATH",
    help="Of a bundle: time whole frames too, on these images, folders or test packs; repeatable.",
)
@click.option(
    "--allow-code",
    is_flag=True,
    help="With --images, run the decode that the bundle carries: only if you trust its maker.",
)
@judging_options
@measuring_options
@ci_options
@as_json
def bench(artifact: Path, **given: Any) -> None:
    """Measure the latency of ARTIFACT: an ONNX file, an engine with its record, or a bundle.

    With --baseline the two are measured interleaved where the baseline's artifact is available, and
    the exit code says whether ARTIFACT regressed: 0 no, 3 yes, 5 undecided.
    """
    from kdcompile import api

    def measure(**asked: Any) -> "Benchmark":
        _check_usage(**asked)
        return api.bench(artifact, **asked)

    _report("bench", artifact, given, measure)


def _check_usage(
    limit: float | None = None,
    baseline: Path | None = None,
    save: Path | None = None,
    reference: Path | None = None,
    runs: int | None = None,
    allow: tuple[str, ...] = (),
    images: tuple[Path, ...] = (),
    allow_code: bool = False,
    **_others: Any,
) -> None:
    """Options of `bench` that do not go together."""
    if limit is not None and (save is not None or baseline is None):
        raise click.UsageError("--until-decided needs --baseline, and goes without --save")
    if reference is not None and baseline is None:
        raise click.UsageError("--reference is the artifact of a --baseline: name that too")
    if runs is not None and save is None:
        raise click.UsageError("--runs are those of --save")
    if allow and baseline is None:
        raise click.UsageError("--allow lets a --baseline differ: name that too")
    if allow_code and not images:
        raise click.UsageError("--allow-code runs the decode of whole frames: name --images too")


@click.command(cls=CiCommand)
@click.argument("before", metavar="A", type=PATH)
@click.argument("after", metavar="B", type=PATH)
@judging_options
@measuring_options
@ci_options
@as_json
def compare(before: Path, after: Path, **given: Any) -> None:
    """Compare the latency of B with that of A, each an artifact or a baseline file (.json).

    Two artifacts are measured interleaved; two baselines are compared by their samples; of one
    each, the artifact is measured. Exit code 0: no regression, 3: B is slower, 5: undecided.
    """
    from kdcompile import api
    from kdcompile.latency.benchmark import is_baseline

    def measure(**asked: Any) -> "Benchmark":
        kinds = [is_baseline(path) for path in (before, after)]
        if all(kinds) and "limit" in asked:
            raise click.UsageError("nothing is measured of two baselines: no --until-decided")
        if not any(kinds) and asked["allow"]:
            raise click.UsageError("two artifacts are measured alike: nothing for --allow to allow")
        return api.compare(before, after, **asked)

    _report("compare", after, given, measure)


def _report(
    command: str, artifact: Path, given: dict[str, Any], measure: "Callable[..., Benchmark]"
) -> NoReturn:
    """Measure, print, write the CI reports, and leave with the exit code."""
    from kdcompile.ci.report import in_ci

    folder, as_json = ci_place(given.pop("ci"), given.pop("ci_folder")), given.pop("as_json")
    started = time.monotonic()
    with in_ci(folder, command, str(artifact), stream=ci_stream(as_json)):
        found = measure(**request_of(given))
    seconds = time.monotonic() - started
    judged = found.compared
    advice = None if judged is None else what_to_type(judged, found.plan, *found.baselines)
    _print(found, as_json, advice)
    if folder is not None:
        ci_report(found, folder, command, str(artifact), seconds, as_json)
    sys.exit(found.exit_code)


def _print(found: "Benchmark", as_json: bool, advice: str | None) -> None:
    """The report of a measurement, for people or as one JSON document."""
    from kdcompile.latency import report as table

    if as_json:
        echo_json(found.document(advice))
        return
    judged, samples, saved = found.compared, found.samples, found.saved
    reference = None if judged is None else judged.reference
    click.echo(plain(table.title(samples, reference)))
    for line in table.places(samples, reference, found.target):
        click.echo(plain(line))
    if judged is None:
        lines = table.in_flight(samples) + table.disturbed(samples) + table.takes(samples)
        show_table(table.latencies(samples), lines)
        if saved is None:
            click.echo("nothing to compare with: --save FILE makes a baseline of this")
    else:
        wanted = [] if advice is None else [f"to decide: {advice}"]
        show_table(table.verdict(judged), [*table.remarks(judged), *wanted])
    if found.frame is not None:
        click.echo(plain(found.frame.line()))
        click.echo(plain(f"the frame is that of {found.frame.mode}"))
    if saved is not None:
        click.echo(f"saved {plain(saved)}, {len(samples.runs)} runs")
