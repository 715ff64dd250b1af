"""Commands around a build: examples, recipes, reports, upkeep."""

import sys
from pathlib import Path

import click

from kdcompile.cli.options import as_json, echo_json
from kdcompile.cli.terminal import echo_text
from kdcompile.cli.trust import open_trusted, trusted_option
from kdcompile.core.backends import names
from kdcompile.core.errors import plain


@click.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path))
@click.option("--example", help="Copy an example: digits, cifar10 or shanghaitech.")
@as_json
def init(folder: Path, example: str | None, as_json: bool) -> None:
    """Write a commented kdcompile.toml, or copy an example, into FOLDER."""
    from kdcompile.config.template import init_example, init_template

    written = init_example(example, folder) if example else init_template(folder)
    if as_json:
        echo_json({"written": [str(path) for path in written]})
    else:
        click.echo("\n".join(f"wrote {plain(path)}" for path in written))


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@trusted_option
@as_json
def report(bundle: Path, trusted: Path | None, as_json: bool) -> None:
    """Print the report of a BUNDLE; report.html lies in it."""
    from kdcompile.bundle.text import text_summary

    found, _ = open_trusted(bundle, trusted)
    told = found.report()
    if as_json:
        echo_json(told.to_json())
        return
    with found.reading("report.json"):  # whose details are free
        text = text_summary(told)
    echo_text(text)
    click.echo(f"full report: {plain(found.folder / 'report.html')}")


@click.command()
@click.option("--via", metavar="PLACE", help="Look at python:PATH or ssh://[user@]host[:port].")
@click.option(
    "--backend",
    type=click.Choice(names()),
    help="Backend that should run networks there; by default the first.",
)
@as_json
def doctor(via: str | None, backend: str | None, as_json: bool) -> None:
    """Say what is installed here, or on a board, what is missing and how to get it."""
    from dataclasses import asdict

    from kdcompile.environment.doctor import examine, exit_code

    if backend and not via:
        raise click.UsageError("--backend is of a place: give --via too")
    if via:
        from kdcompile.environment.doctor_board import examine_board
        from kdcompile.remote.open import open_place

        wanted = backend or names()[0]
        checks = examine_board(lambda: open_place(via, wanted), wanted)
    else:
        checks = examine()
    if as_json:
        echo_json([asdict(check) for check in checks])
    else:
        for check in checks:
            click.echo(f"{check.status:<8} {check.name:<18} {plain(check.detail)}")
            if check.fix:
                click.echo(f"{'':<27} fix: {plain(check.fix)}")
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
    removed = store.prune(keep)
    drop_unused(store)
    if as_json:
        echo_json({"removed": [str(path) for path in removed]})
    else:
        click.echo(f"removed {len(removed)} entries of {plain(store.root)}")
