"""The files of a user's code that a bundle, a kit or a sample carries in `code/`."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

from kdcompile.core.readers import read_text

CODE = "code"
OF_FILE = ".py"


def write_code(folder: Path, name: str, beside: Path) -> None:
    """Copy the file of `file.py:f` into a bundle, with what it imports from beside it.

    Args:
        folder: the bundle.
        name: as the spec has it; of an installed package nothing is copied.
        beside: the spec's folder.
    """
    for place, path in code_of(name, beside).items():
        copy = folder / place
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def code_of(name: str, beside: Path) -> dict[str, Path]:
    """The files that `write_code` copies, by their names in a bundle; none of a built-in decode."""
    if ":" not in name:
        return {}
    found = _closure(beside / name.partition(":")[0], beside)
    return {f"{CODE}/{path.relative_to(beside).as_posix()}": path for path in found}


def _closure(first: Path, beside: Path) -> list[Path]:
    """A file and those of a folder that it imports, directly or not; of packages all modules."""
    found: list[Path] = []
    waiting = [first] if first.suffix == OF_FILE else []
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.append(path)
        for name in _imported(path):
            waiting += [beside / f"{name}{OF_FILE}", *(beside / name).rglob(f"*{OF_FILE}")]
    return sorted(found)


def _imported(path: Path) -> Iterator[str]:
    """The first part of each module that a file imports."""
    for node in ast.walk(ast.parse(read_text(path))):
        if isinstance(node, ast.Import):
            yield from (one.name.partition(".")[0] for one in node.names)
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
