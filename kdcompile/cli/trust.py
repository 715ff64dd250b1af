"""The option `--trusted`, and what the command line says of a bundle's signature."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from kdcompile.bundle.manifest import Bundle

trusted_option = click.option(
    "--trusted",
    metavar="KEY.pub",
    type=click.Path(path_type=Path),
    help="The public key that must have signed the BUNDLE; or $KDCOMPILE_TRUSTED_KEY.",
)


def open_trusted(folder: Path, trusted: Path | None) -> tuple["Bundle", str]:
    """A bundle and the state of its signature in words; a warning where nobody checked that.

    Raises:
        KDError: those of `open_bundle`, and `signature-corrupt`.
        ToolMissingError: a key is trusted, and `cryptography` is not installed.
    """
    from kdcompile.bundle.signature import check_signature, open_bundle, trusted_key

    bundle = open_bundle(folder, trusted)
    found = check_signature(folder, trusted_key(trusted))
    if found is None:
        return bundle, "not signed"
    if not found.is_trusted:
        click.echo(f"warning: {found}", err=True)
    return bundle, str(found)
