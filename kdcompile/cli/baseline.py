"""Command `baseline`: latency baselines in a repository, with who changed them and why."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.measuring import measuring_options, request_of
from kdcompile.cli.options import PATH, as_json, options
from kdcompile.cli.terminal import show, show_table
from kdcompile.core.errors import plain

if TYPE_CHECKING:
    from kdcompile.latency.keep_baseline import Baselines, Kept

QUANTILES = ("p50_ms", "p90_ms", "p99_ms")
name_argument = click.argument("name", required=False)
where_options = options(
    click.option("--folder", type=PATH, help="Of the baselines; .kdcompile-baselines by default."),
    click.option("--device", metavar="CLASS", help="Class; by default that of the device."),
)
measured_options = options(
    click.argument("artifact", type=PATH),
    name_argument,
    where_options,
    click.option("--who", help="Your name; by default as git knows you."),
    click.option("--runs", type=int, help="Measuring runs, at least 3 (3)."),
    measuring_options,
    as_json,
)


@click.group()
def baseline() -> None:
    """Keep latency baselines in a repository: DEVICECLASS/NAME.json, with their history."""


@baseline.command("init")
@measured_options
@click.option("--why", default="first baseline", show_default=True, help="For the history.")
def init_baseline(artifact: Path, as_json: bool, **given: Any) -> None:
    """Measure ARTIFACT three times and keep it as NAME (by default the artifact's)."""
    from kdcompile import api

    show(api.init_baseline(artifact, **request_of(given)), as_json, _change)


@baseline.command("update")
@measured_options
@click.option("--why", required=True, help="For the history: what changed, and that it may.")
@click.option("--add", is_flag=True, help="Keep the runs that are there, and add this session's.")
def update_baseline(artifact: Path, as_json: bool, **given: Any) -> None:
    """Measure ARTIFACT again and replace its baseline; the old numbers stay in its history.

    Use --add on several days, so that the baseline covers day-to-day variation.
    """
    from kdcompile import api

    show(api.update_baseline(artifact, **request_of(given)), as_json, _change)


@baseline.command("show")
@name_argument
@where_options
@as_json
def show_baseline(name: str | None, folder: Path | None, device: str | None, as_json: bool) -> None:
    """List the baselines, or print the conditions and the history of NAME."""
    from kdcompile import api

    found = api.baselines(name, folder=folder, device=device)
    if as_json or name is not None:
        show(found, as_json, lambda found: [line for one in found.baselines for line in _all(one)])
    elif found.baselines:
        _list(found)
    else:
        click.echo(f"no baseline in {plain(folder or '.kdcompile-baselines')}: "
                   "kdcompile baseline init ARTIFACT makes one")  # fmt: skip


def _change(kept: "Kept") -> list[str]:
    """The last change of a baseline, and the command that compares with it."""
    file, change = plain(kept.file), kept.history[-1]
    before = [] if change["before"] is None else [f"before: {_numbers(change['before'])}"]
    return [
        *before,
        f"now:    {_numbers(change['after'])}",
        f"wrote {file}; commit it, and compare with: kdcompile bench ARTIFACT --baseline {file}",
    ]


def _all(kept: "Kept") -> list[str]:
    """Conditions and history of a baseline."""
    one, short = kept.baseline, kept.baseline.samples.sha256[:12]
    lines = [plain(kept.file), f"artifact {plain(one.artifact(kept.file))}, SHA-256 {short}..."]
    lines += [f"  {key:<24} {value}" for key, value in one.record.items()]
    for change in kept.history:
        lines.append(plain(f"{change['when']} {change['who']}: {change['why']}"))
        lines.append(f"  {_numbers(change['after'])}, SHA-256 {change['sha256'][:12]}...")
    return lines


def _list(found: "Baselines") -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("class", "name", "p50 ms", "p90 ms", "p99 ms", "changed", "by"):
        table.add_column(column, justify="right" if column.endswith("ms") else "left")
    for one in found.baselines:
        change = one.history[-1]
        ms = (f"{one.samples[key]:.4g}" for key in QUANTILES)
        row = (one.device_class, one.name, *ms, change["when"][:10], change["who"])
        table.add_row(*map(plain, row))
    show_table(table)


def _numbers(found: Mapping[str, Any]) -> str:
    ms = ", ".join(f"{key[:3]} {found[key]:.4g}" for key in QUANTILES)
    return f"{ms} ms ({found['inferences']} inferences in {found['runs']} runs)"
