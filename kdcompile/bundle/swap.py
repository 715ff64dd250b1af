"""One folder in the place of another, so that one of them is there whatever happens."""

from pathlib import Path


def swap(fresh: Path, folder: Path) -> None:
    """Rename `fresh` to `folder`; a folder that is there goes to `old` beside `fresh`.

    Where the second rename fails, the old folder is back in its place.

    Raises:
        OSError: nothing was changed.
    """
    aside = fresh.with_name("old")
    had_one = folder.is_dir()
    if had_one:
        folder.rename(aside)
    try:
        fresh.rename(folder)
    except OSError:
        if had_one:
            aside.rename(folder)
        raise
