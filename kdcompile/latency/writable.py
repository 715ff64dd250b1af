"""Whether a file can be written, known before anything is measured for it."""

import tempfile
from pathlib import Path

from kdcompile.core.errors import KDError


def check_writable(file: Path) -> None:
    """Try the nearest folder that is there: nothing is made and nothing left.

    Raises:
        KDError: `baseline-folder`.
    """
    folder = file.absolute().parent
    try:
        file.exists()  # refuses a name that no file can have
        while not folder.exists():
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise unwritable(file, error) from error


def check_new(file: Path) -> None:
    """Refuse a file that cannot be written, or is there already.

    Raises:
        KDError: `baseline-folder`, `baseline-exists`.
    """
    check_writable(file)
    if file.exists():
        raise KDError(
            "baseline-exists",
            "there is a file of this name, whose samples and history would be lost",
            where=str(file),
            fix="name another file, or move this one away; kdcompile baseline keeps a history",
        )


def unwritable(file: Path, error: OSError | ValueError) -> KDError:
    """The error of a baseline's file that cannot be written."""
    why = error.strerror if isinstance(error, OSError) else str(error)
    return KDError(
        "baseline-folder",
        f"the baseline cannot be written: {why}",
        where=str(file),
        fix="name a file in a folder that you may write to",
    )
