"""Options that several commands share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")


def spec_options(command: F) -> F:
    """SPEC, --target and --set."""
    command = click.option(
        "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override a field of the spec."
    )(command)
    command = click.option("--target", help="Device name; see `kdcompile targets`.")(command)
    return click.argument("spec", required=False, metavar="[DIR_OR_SPEC]")(command)


via_option = click.option(
    "--via",
    metavar="PLACE",
    help="Where the engine is built and timed: python:PATH or ssh://[user@]host[:port].",
)


sign_option = click.option(
    "--sign",
    "key",
    metavar="KEY.pem",
    type=click.Path(path_type=Path),
    help="Sign the bundle with an Ed25519 private key.",
)


def sign(folder: Path, key: Path | None) -> None:
    """Sign a bundle where a key is given, and say so on standard error."""
    if key is not None:
        from kdcompile.bundle.signature import sign_bundle

        click.echo(f"signed by {sign_bundle(folder, key)}", err=True)


def echo_json(value: Any) -> None:
    """Indented JSON on standard output."""
    click.echo(json.dumps(value, indent=1, sort_keys=True, default=str))
