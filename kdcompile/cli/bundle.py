"""Command `bundle`: a bundle's files, the test pack for a board, and the merge of its record."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdcompile.cli.options import (
    PATH,
    as_json,
    force_option,
    sign_option,
    spec_options,
    trusted_option,
    via_option,
)
from kdcompile.cli.terminal import echo_json, echo_text, tell
from kdcompile.core.errors import plain

if TYPE_CHECKING:
    from kdcompile.bundle.trust import Trust


@click.command()
@spec_options
@via_option
@click.option("-o", "--output", "out", type=PATH, help="Copy the stage's files to this folder.")
@click.option(
    "--test-pack",
    type=PATH,
    help="Write the test images and the teacher for the board's own gates to this folder; "
    "with --merge: the folder that the board ran, by which its outputs are evaluated.",
)
@click.option(
    "--merge",
    type=PATH,
    metavar="DEVICE_JSON",
    help="Decide the gates that a board measured; name the BUNDLE instead of the spec.",
)
@click.option(
    "--engine", type=PATH, help="With --merge: the board's engine, or the folder that it is in."
)
@sign_option
@click.option(
    "--resign-unverified",
    is_flag=True,
    help="With --merge and --sign: sign though no key vouches for the BUNDLE; "
    "the manifest then says so.",
)
@trusted_option
@force_option
@as_json
def bundle(
    spec: str | None,
    merge: Path | None,
    engine: Path | None,
    trusted: "Trust | None",
    as_json: bool,
    **given: Any,
) -> None:
    """Write the bundle's files; a test pack for a board; or merge what the board measured."""
    unverified = given.pop("resign_unverified")
    if unverified and (merge is None or given["sign"] is None):
        raise click.UsageError("--resign-unverified needs --merge and --sign")
    if merge is not None:
        own = {name: given.pop(name) for name in ("sign", "test_pack")}
        if any(given.values()):
            raise click.UsageError(
                "--merge takes a BUNDLE, --engine, --test-pack, --sign, --resign-unverified, "
                "--trusted, --expect and --json only"
            )
        own |= {"engine": engine, "resign_unverified": unverified}
        sys.exit(merge_board(Path(spec or "."), merge, trusted, as_json, **own))
    if engine is not None or trusted is not None:
        which = "--engine" if engine else "--trusted or --expect"
        raise click.UsageError(f"{which} needs --merge")
    if given["force"] and given["out"] is None:
        raise click.UsageError("--force needs -o: it replaces what is there")
    if given["sign"] is not None and given["out"] is None:
        raise click.UsageError("--sign needs -o: the stage's own files stay as they are")
    from kdcompile import api

    made = api.bundle(spec, **given)
    if made.signed_by is not None:
        tell(f"signed by {made.signed_by}")
    if as_json:
        pack = {} if made.test_pack is None else {"test_pack": made.test_pack}
        echo_json({"stage": "bundle", "path": str(made.path), **made.meta, **pack})
        return
    for name, value in made.meta.items():
        click.echo(f"{name}: {plain(value)}")
    click.echo(f"bundle: {plain(made.path)}")
    if made.test_pack is not None:
        click.echo(f"test pack: {plain(made.test_pack['path'])}, {made.test_pack['photos']} images")


def merge_board(
    folder: Path, record: Path, trusted: "Trust | None", as_json: bool, **given: Any
) -> int:
    """Merge a board's record, print the report, and give its exit code."""
    from kdcompile import api
    from kdcompile.bundle.manifest import SIGNATURE
    from kdcompile.bundle.text import text_summary

    was_signed = (folder / SIGNATURE).is_file()
    merged = api.merge(
        folder,
        record,
        trusted=None if trusted is None else trusted.key,
        expect=None if trusted is None else trusted.expect,
        **given,
    )
    if merged.signed_by is not None:
        tell(f"signed by {merged.signed_by}")
    elif was_signed:
        click.echo("warning: the bundle is no longer signed; --sign KEY keeps it so", err=True)
    if as_json:
        echo_json(merged)
    else:
        echo_text(text_summary(merged))
        click.echo(f"bundle: {plain(folder)}")
        click.echo(plain(merged.verdict))
    return merged.exit_code
