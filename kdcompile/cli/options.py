"""Options that several commands share."""

import logging
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from kdcompile.core.errors import KDError
from kdcompile.core.escape import plain, toml
from kdcompile.core.logs import set_level

if TYPE_CHECKING:
    from kdcompile.bundle.manifest import Bundle
    from kdcompile.bundle.trust import Trust

F = TypeVar("F", bound=Callable[..., Any])
Option = Callable[[F], F]
PATH = click.Path(path_type=Path)


def options(*several: Option[Any]) -> Option[Any]:
    """Several options as one decorator, in the order of the help."""

    def added(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(several):
            command = option(command)
        return command

    return added


as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON on standard output.")
spec_options = options(
    click.argument("spec", required=False, metavar="[DIR_OR_SPEC]"),
    click.option("--target", help="Device name; see `kdcompile targets`."),
    click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a field of the spec. A path is relative to the current folder, code "
        "(FILE.py:NAME) to the spec's.",
    ),
)


def via(help_text: str) -> Option[Any]:
    """`--via` with the meaning that it has for one command."""
    return click.option(
        "--via", metavar="PLACE", help=f"{help_text}: python:PATH or ssh://[user@]host[:port]."
    )


via_option = via("Build and time the engine there")
require_option = click.option(
    "--require",
    type=click.Choice(["device"]),
    help="Treat gates that still need the device as inconclusive (exit code 5).",
)
sign_option = click.option(
    "--sign",
    metavar="KEY.pem",
    type=PATH,
    help="Sign the bundle with an Ed25519 private key.",
)

force_option = click.option(
    "--force", is_flag=True, help="Replace the bundle of another spec in this folder."
)

track_option = click.option(
    "--track",
    multiple=True,
    metavar="NAME[:WHERE]",
    help="Write curves, results and the report to an experiment tracker: mlflow[:URI], "
    "tensorboard[:FOLDER], wandb[:FOLDER] or a plug-in; repeatable.",
)


def trusted_option(command: F) -> F:
    """`--trusted` and `--expect`, which the command gets as one `trusted`: a `Trust`, or None."""

    @wraps(command)
    def called(*args: Any, trusted: Path | None, expect: str | None, **given: Any) -> Any:
        trust = None if trusted is None and expect is None else _trust(trusted, expect)
        return command(*args, trusted=trust, **given)

    wrapped: F = options(
        click.option(
            "--trusted",
            metavar="KEY.pub",
            type=PATH,
            help="The public key that must have signed each BUNDLE; or $KDCOMPILE_TRUSTED_KEY, or "
            'key = "KEY.pub" in ~/.config/kdcompile/trust.toml.',
        ),
        click.option(
            "--expect",
            metavar="WHAT=VALUE,...",
            help="Refuse a BUNDLE that is not the one meant: name=..., target=..., "
            "newer-than=TIME, such as 2026-12-01T12:00:00Z.",
        ),
    )(called)
    return wrapped


def trust_words(trust: "Trust | None") -> dict[str, Any]:
    """`trusted` and `expect` as `kdcompile.api` takes them; nothing where neither was given."""
    return {} if trust is None else {"trusted": trust.key, "expect": trust.expect}


def _trust(trusted: Path | None, expect: str | None) -> "Trust":
    from kdcompile.bundle.trust import Trust, parse_expected

    try:
        return Trust(trusted, {} if expect is None else parse_expected(expect))
    except KDError as error:
        raise click.UsageError(f"{error.message}; give {error.fix}") from error


previous_option = click.option(
    "--baseline",
    metavar="BUNDLE",
    type=PATH,
    help="An earlier bundle: its network runs on the same test images, and the student must "
    "be no worse ([gates] previous).",
)


def with_previous(sets: tuple[str, ...], baseline: Path | None) -> tuple[str, ...]:
    """The `--set` values, and before them the one that `--baseline` stands for."""
    if baseline is None:
        return sets
    return (f"gates.previous.bundle={toml(str(baseline.resolve()))}", *sets)


def is_bundle(spec: str | None, target: str | None, sets: tuple[str, ...]) -> bool:
    """Whether `[DIR_OR_SPEC]` names a bundle.

    Raises:
        click.UsageError: an option that is of the other kind.
    """
    if spec is None or not (Path(spec) / "manifest.json").is_file():
        return False
    if target is not None or sets:
        raise click.UsageError("--target and --set are of a spec: a bundle is built")
    return True


def spec_or_bundle(
    spec: str | None, target: str | None, sets: tuple[str, ...], trusted: "Trust | None"
) -> "str | Bundle | None":
    """What `[DIR_OR_SPEC]` names, a bundle opened.

    Raises:
        click.UsageError: an option that is of the other kind.
        KDError: those of `open_trusted`.
    """
    bundle = is_bundle(spec, target, sets)
    if trusted is not None and not bundle:
        raise click.UsageError("--trusted and --expect are of a BUNDLE: name its folder")
    return open_trusted(Path(str(spec)), trusted)[0] if bundle else spec


def open_trusted(folder: Path, trusted: "Trust | None") -> tuple["Bundle", str]:
    """A bundle and the state of its signature in words; a warning where nobody checked that.

    Raises:
        KDError: those of `open_bundle`, and `signature-corrupt`.
        ToolMissingError: a key is trusted, and `cryptography` is not installed.
    """
    from kdcompile.bundle.signature import check_signature, open_bundle
    from kdcompile.bundle.trust import Trust

    bundle = open_bundle(folder, trusted)
    found = check_signature(folder, (trusted or Trust()).trusted_key())
    if found is None:
        return bundle, "not signed"
    if bundle.manifest.get("resigned_unverified"):
        click.echo("warning: it was signed anew at a time when no key vouched for it", err=True)
    if not found.is_trusted:
        click.echo(f"warning: {plain(str(found))}", err=True)
    return bundle, str(found)


def _set_level(level: int) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(context: click.Context, option: click.Parameter, asked: bool) -> None:
        if asked and os.environ.get("RANK", "0") == "0":  # of torchrun the first process reports
            set_level(level)

    return callback


def add_levels(command: click.Command) -> None:
    """-q and -v for a command, and for each of its own commands."""
    for names, level, text in (
        (["-q", "--quiet"], logging.WARNING, "Print warnings and errors only."),
        (["-v", "--verbose"], logging.DEBUG, "Print more of what is done, and why."),
    ):
        option = click.Option(
            names, is_flag=True, expose_value=False, help=text, callback=_set_level(level)
        )
        command.params.append(option)
    for one in command.commands.values() if isinstance(command, click.Group) else ():
        add_levels(one)
