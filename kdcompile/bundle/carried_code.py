"""A user's code in a bundle: what makes answers of the network's outputs, where no built-in does.

It lies in `code/`, is listed in the manifest as every file, and is never run unasked: who opens a
bundle of somebody else would run their program. `infer.py`, which is a program of the bundle that
its user starts, runs a decode from there too.
"""

import ast
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcompile.bundle.manifest import Bundle
from kdcompile.bundle.product import settings_of
from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.core.readers import read_text
from kdcompile.core.user_code import load_factory
from kdcompile.tasks.task import Task

CODE = "code"
KEY = "code"  # of `task.json`: the user's own task, as the spec names it
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


@contextmanager
def with_code(bundle: Bundle, task: Task, allow: bool) -> Iterator[Task]:
    """The task with the bundle's own code, which may import the files next to it within the block.

    Args:
        bundle: whose files were checked.
        task: with the settings of the bundle.
        allow: the caller wants code of the bundle to run.

    Raises:
        KDError: `bundle-code`, it is not allowed and there are no answers without it; those of
            `load_factory`.
    """
    decode = str(task.settings().get("decode") or "")
    needs = ":" in decode
    name = decode if needs else str(settings_of(bundle).get(KEY) or "")
    if needs and not allow:
        raise _not_allowed(bundle, name)
    if not name or not allow:
        yield task  # without code of its own the outputs of a user's task are given as they are
        return
    with scratch() as place:
        for file in bundle.manifest["files"]:
            if file.startswith(f"{CODE}/"):
                copy = place.joinpath(*file.split("/")[1:])
                copy.parent.mkdir(parents=True, exist_ok=True)
                with bundle.reading(file) as content:  # the bytes that the manifest names
                    copy.write_bytes(content)
        yield task.with_code(load_factory(name, place))


def decode_files(bundle: Bundle, allow: bool) -> dict[str, Path]:
    """The files of the bundle's own decode, by name, for a sample that is to run; checked.

    Raises:
        KDError: `bundle-code`, there is one and it is not allowed.
    """
    decode = str(settings_of(bundle).get("decode") or "")
    if ":" not in decode:
        return {}
    if not allow:
        raise _not_allowed(bundle, decode)
    names = [name for name in bundle.manifest["files"] if name.startswith(f"{CODE}/")]
    return {name: bundle.file(name) for name in names}


def _not_allowed(bundle: Bundle, name: str) -> KDError:
    return KDError(
        "bundle-code",
        f"the boxes of this bundle are made by code that it carries, {name}, which is not run "
        "unasked",
        where=str(bundle.folder / CODE),
        fix="read it, and run it with --allow-code if you trust who made the bundle; with "
        "--trusted KEY its signature is checked before",
    )
