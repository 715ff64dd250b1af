"""Commands `init`, `report`, `doctor`, `schema` and `clean`."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdcompile.cli.options import PATH, as_json, open_trusted, trusted_option, via
from kdcompile.cli.terminal import echo_json, echo_text, show
from kdcompile.core.backends import names
from kdcompile.core.errors import KDError, plain

if TYPE_CHECKING:
    from kdcompile.bundle.trust import Trust


@dataclass(frozen=True)
class Written:
    """The files that `init` wrote."""

    written: list[Path]


@dataclass(frozen=True)
class Removed:
    """The store entries that `clean` removed."""

    removed: list[Path]


@click.command()
@click.argument("folder", default=".", type=PATH)
@click.option(
    "--example", help="Copy an example: digits, cells, keypoints, cifar10, street or shanghaitech."
)
@click.option(
    "--from",
    "factory",
    metavar="FACTORY",
    help="Write a spec that fits this network, such as model.py:build, and the data of --data.",
)
@click.option("--data", type=PATH, help="Folder of the data, with --from.")
@click.option("--weights", type=PATH, help="The network's weights, with --from.")
@click.option("--target", default="jetson", help="Device, with --from.")
@as_json
def init(
    folder: Path,
    example: str | None,
    factory: str | None,
    data: Path | None,
    weights: Path | None,
    target: str,
    as_json: bool,
) -> None:
    """Write a commented kdcompile.toml, one for a network and its data, or an example, to FOLDER.

    A spec for a network and its data is complete; kdcompile plan shows what it builds.
    """
    from kdcompile.config.template import init_example, init_template

    if (factory is None) != (data is None) or (weights and not factory) or (factory and example):
        raise click.UsageError("--from and --data go together, and without --example")
    if factory is not None and data is not None:
        from kdcompile.passes.fitted_spec import init_fitted
        from kdcompile.targets import load

        load(target)  # refused before anything is looked at
        written = init_fitted(factory, data, folder, weights, target)
    else:
        written = init_example(example, folder) if example else init_template(folder)
    show(Written(written), as_json, lambda done: [f"wrote {plain(p)}" for p in done.written])


@click.command()
@click.argument("bundles", type=PATH, nargs=-1, required=True, metavar="BUNDLE...")
@click.option(
    "-o", "--output", "out", type=PATH, metavar="FILE.html",
    help="Write the page that compares several bundles to this file.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace FILE.html.")
@trusted_option
@as_json
def report(
    bundles: tuple[Path, ...],
    out: Path | None,
    force: bool,
    trusted: "Trust | None",
    as_json: bool,
) -> None:
    """Print the report of a BUNDLE, whose page is report.html in it; several side by side."""
    if len(bundles) > 1:
        compare_reports(bundles, out, force, trusted, as_json)
        return
    if out is not None:
        raise click.UsageError("-o is of several bundles: the page of one is report.html in it")
    from kdcompile.bundle.text import text_summary

    found, _ = open_trusted(bundles[0], trusted)
    summary = found.report()
    if as_json:
        echo_json(summary)
        return
    with found.reading("report.json"):  # whose details are free
        text = text_summary(summary)
    echo_text(text)
    click.echo(f"full report: {plain(found.folder / 'report.html')}")


def compare_reports(
    bundles: tuple[Path, ...],
    out: Path | None,
    force: bool,
    trusted: "Trust | None",
    as_json: bool,
) -> None:
    """Print the reports of several bundles side by side, and write their page.

    Raises:
        KDError: those of `open_trusted` and `named`; `output-exists`; `output-unwritable`.
    """
    from kdcompile.bundle.report import compared
    from kdcompile.core.files import write_text

    if out is not None and out.exists() and not force:
        raise KDError(
            "output-exists",
            f"{out.name} is there already",
            where=str(out.absolute()),
            fix="name another file, or pass --force to replace it",
        )
    names = compared.named([str(folder) for folder in bundles])
    reports = {}
    with ExitStack() as reading:
        for name, folder in zip(names, bundles, strict=True):
            found, _ = open_trusted(folder, trusted)
            reports[name] = found.report()
            reading.enter_context(found.reading("report.json"))
        text = compared.text(reports)
        page = None if out is None else compared.html(reports)
    if out is not None and page is not None:
        try:
            write_text(out, page)
        except OSError as error:
            raise KDError(
                "output-unwritable",
                f"{out.name} cannot be written: {error.strerror}",
                where=str(out.absolute()),
                fix="name a file in a folder that is there and may be written to",
            ) from error
    if as_json:
        echo_json(list(reports.values()))
        return
    echo_text(text)
    if out is not None:
        click.echo(f"page: {plain(out)}")


@click.command()
@via("Examine that device")
@click.option(
    "--backend",
    type=click.Choice(names()),
    help="Backend that is to run networks there; by default the first.",
)
@as_json
def doctor(via: str | None, backend: str | None, as_json: bool) -> None:
    """List what is installed here, or on a board, what is missing and how to get it."""
    from kdcompile.environment.doctor import Check, examine, exit_code

    if backend and not via:
        raise click.UsageError("--backend needs --via")
    if via:
        from kdcompile.environment.doctor_board import examine_board
        from kdcompile.remote.open import open_place

        wanted = backend or names()[0]
        checks = examine_board(lambda: open_place(via, wanted), wanted)
    else:
        checks = examine()

    def lines(checks: list[Check]) -> Iterator[str]:
        for check in checks:
            yield f"{check.status:<8} {check.name:<18} {plain(check.detail)}"
            if check.fix:
                yield f"{'':<27} fix: {plain(check.fix)}"

    show(checks, as_json, lines)
    sys.exit(exit_code(checks))


@click.command()
@click.option("--of", "command", metavar="COMMAND", help="What COMMAND prints with --json.")
@click.option("--json", "as_json", is_flag=True, help="The schema is JSON either way.")
def schema(command: str | None, as_json: bool) -> None:
    """Print the JSON Schema of the spec, for editors, or of a command's --json."""
    if command is not None:
        from kdcompile.cli.schemas import schema_of

        echo_json(schema_of(command))
        return
    from kdcompile.config.spec import Spec

    echo_json(Spec.model_json_schema())


@click.command()
@click.argument("spec", required=False, metavar="[DIR_OR_SPEC]")
@click.option("--all", "everything", is_flag=True, help="Also what the current spec needs.")
@as_json
def clean(spec: str | None, everything: bool, as_json: bool) -> None:
    """Remove store entries that the current spec does not use."""
    from kdcompile.cli.build import planned
    from kdcompile.config.load import find_spec
    from kdcompile.core.store import Store
    from kdcompile.passes.why import drop_unused

    store = Store(find_spec(spec).parent / ".kdcompile")
    keep = [] if everything else list(planned(spec, None, ()).found().values())
    done = Removed(store.prune(keep))
    drop_unused(store)
    show(done, as_json, lambda _: [f"removed {len(done.removed)} entries of {plain(store.root)}"])
