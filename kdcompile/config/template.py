"""`kdcompile init`: a packed example, or a commented spec for the user's own teacher."""

from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from kdcompile.core.errors import KDError, nearest
from kdcompile.core.files import replacing

EXAMPLES = "kdcompile.examples"
NOT_COPIED = ("__init__.py", "__pycache__")
TEMPLATE = "template.toml"  # next to this file


def example_names() -> list[str]:
    """The examples that this installation carries."""
    return sorted(
        entry.name
        for entry in files(EXAMPLES).iterdir()
        if entry.is_dir() and any(file.name.endswith(".toml") for file in entry.iterdir())
    )


def init_example(name: str, folder: Path) -> list[Path]:
    """Copy an example, ready for `kdcompile build`, into a folder.

    Returns:
        The files that were written.

    Raises:
        KDError: `example-unknown`, `init-exists` or `output-unwritable`; nothing was written
            in the first two cases.
    """
    known = example_names()
    if name not in known:
        raise KDError(
            "example-unknown",
            f"there is no example {name!r}{nearest(name, known)}",
            where="kdcompile init --example",
            fix=f"use one of {', '.join(known)}",
        )
    content = dict(_walk(files(EXAMPLES).joinpath(name)))
    return write_new(folder, {path: source.read_bytes() for path, source in content.items()})


def init_template(folder: Path) -> list[Path]:
    """Write a commented `kdcompile.toml` for the user's own teacher.

    Returns:
        The files that were written.

    Raises:
        KDError: `init-exists` or `output-unwritable`.
    """
    content = files("kdcompile.config").joinpath(TEMPLATE).read_bytes()
    return write_new(folder, {"kdcompile.toml": content})


def _walk(folder: Traversable, prefix: str = "") -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.name in NOT_COPIED or entry.name.startswith("."):  # a store of a build in place
            continue
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name, entry


def write_new(folder: Path, content: dict[str, bytes]) -> list[Path]:
    """Write files by name into a folder: all, or none of them. None may be there that is another.

    Those that are there as they would be written are of a process that was killed amid its files,
    unless none is missing.

    Returns:
        The files, written or there.

    Raises:
        KDError: `init-exists` or `output-unwritable`.
    """
    targets = {folder / name: data for name, data in sorted(content.items())}
    there = {path for path, data in targets.items() if _is(path, data)}
    missing = [path for path in targets if path not in there]
    for path in missing or targets:
        if path.exists() or path.is_symlink():
            raise KDError(
                "init-exists",
                f"{path.name} is there already and is not overwritten",
                where=str(path.absolute()),
                fix="name an empty folder, or move the file away",
            )
    begun: list[Path] = []
    try:
        for path in missing:
            path.parent.mkdir(parents=True, exist_ok=True)
            begun.append(path)
            with replacing(path) as temporary:
                temporary.write_bytes(targets[path])
    except BaseException as error:
        for path in begun:
            with suppress(OSError):
                path.unlink()
        if not isinstance(error, OSError):
            raise
        raise KDError(
            "output-unwritable",
            f"the files cannot be written: {error.strerror}",
            where=str(folder.absolute()),
            fix="name a writable folder",
        ) from error
    return list(targets)


def _is(path: Path, data: bytes) -> bool:
    """Whether a regular file is there with this content."""
    try:
        return not path.is_symlink() and path.is_file() and path.read_bytes() == data
    except OSError:
        return False
