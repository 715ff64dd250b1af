"""The option `--trusted`, and what the command line says of a bundle's signature."""

from pathlib import Path

import click

trusted_option = click.option(
    "--trusted",
    metavar="KEY.pub",
    type=click.Path(path_type=Path),
    help="The public key that must have signed the BUNDLE; or $KDCOMPILE_TRUSTED_KEY.",
)


def check_trust(folder: Path, trusted: Path | None) -> str:
    """The state of a bundle's signature in words; a warning where nobody checked it.

    Raises:
        KDError: a key is trusted, and the signature is missing or wrong.
        ToolMissingError: a key is trusted, and `cryptography` is not installed.
    """
    from kdcompile.bundle.signature import check_signature, trusted_key

    found = check_signature(folder, trusted_key(trusted))
    if found is None:
        return "not signed"
    if not found.is_trusted:
        click.echo(f"warning: {found}", err=True)
    return str(found)
