"""A user's code in a bundle: what makes answers of the network's outputs, where no built-in does.

It lies in `code/`, is listed in the manifest as every file, and is never run unasked: who opens a
bundle of somebody else would run their program. `infer.py`, which is a program of the bundle that
its user starts, runs a decode from there too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kdcompile.bundle.manifest import Bundle
from kdcompile.bundle.task_settings import settings_of
from kdcompile.bundle.user_files import CODE
from kdcompile.core.errors import KDError
from kdcompile.core.files import scratch
from kdcompile.core.user_code import load_factory
from kdcompile.tasks.task import Task

KEY = "code"  # of `task.json`: the user's own task, as the spec names it


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
