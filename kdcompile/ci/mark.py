"""The words of the mark `kdcompile_latency`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from kdcompile.core.errors import KDError, nearest

DAY_S = 86400
Undecided = Literal["fail", "skip"]


@dataclass(frozen=True)
class Settings:
    """The words of the mark.

    Args:
        baseline: file; relative to pytest's rootdir, like every path here.
        max_regression: the margin of the median, as a share.
        undecided: what becomes of a test whose verdict is inconclusive; it never passes.
        seconds: that measuring may take.
        via: where an artifact is measured, as `--via`.
        allow: conditions that may differ from the baseline's, as `--allow`.
    """

    baseline: str | os.PathLike[str] | None = None
    max_regression: float = 0.03
    undecided: Undecided = "fail"
    seconds: float = 10.0
    via: str | None = None
    allow: Sequence[str] = ()


def settings_of(args: Sequence[Any], words: Mapping[str, Any]) -> Settings:
    """The mark's words, checked.

    Raises:
        KDError: `mark-invalid`.
    """
    known = [field.name for field in fields(Settings)]
    unknown = next((word for word in words if word not in known), None)
    if args or unknown is not None:
        said = f"no word {unknown!r}{nearest(unknown, known)}" if unknown else "words only by name"
        raise _mark(f"it takes {said}", f"use {', '.join(known)}")
    found = Settings(**words)
    if isinstance(found.allow, str):
        found = replace(found, allow=(found.allow,))
    _check_texts(found)
    for name, high in (("max_regression", 1), ("seconds", DAY_S)):
        value = getattr(found, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < high:
            raise _mark(f"{name} is {value!r}", f"give a number above 0 and below {high}")
    return found


def _check_texts(found: Settings) -> None:
    choices = get_args(Undecided)
    if found.undecided not in choices:
        near = nearest(str(found.undecided), choices)
        raise _mark(f"undecided is {found.undecided!r}{near}", f"give {' or '.join(choices)}")
    if not isinstance(found.baseline, str | os.PathLike | None):
        raise _mark(f"baseline is {found.baseline!r}", "give the path of a baseline file")
    if not isinstance(found.via, str | None):
        raise _mark(f"via is {found.via!r}", "give python:PATH or ssh://[user@]host[:port]")
    allow = found.allow
    if not isinstance(allow, list | tuple) or not all(isinstance(key, str) for key in allow):
        raise _mark(f"allow is {allow!r}", "give a list of names, such as ['python_version']")


def _mark(message: str, fix: str) -> KDError:
    return KDError("mark-invalid", message, where="@pytest.mark.kdcompile_latency", fix=fix)
