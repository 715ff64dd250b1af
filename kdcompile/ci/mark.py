"""The words of the mark `kdcompile_latency`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from kdcompile.errors import KDError, nearest

DAY_S = 86400


@dataclass(frozen=True)
class Settings:
    """The words of the mark.

    Args:
        baseline: file; relative to pytest's rootdir, like every path here.
        max_regression: the margin of the median, as a share.
        strict: fail also where the verdict is inconclusive.
        seconds: that one measuring run may take.
        via: where an artifact is measured, as `--via`.
        allow: conditions that may differ from the baseline's, as `--allow`.
    """

    baseline: str | os.PathLike[str] | None = None
    max_regression: float = 0.03
    strict: bool = False
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
    for name in ("max_regression", "seconds"):
        value = getattr(found, name)
        high = 1 if name == "max_regression" else DAY_S
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < high:
            raise _mark(f"{name} is {value!r}", f"give a number above 0 and below {high}")
    return found


def _mark(message: str, fix: str) -> KDError:
    return KDError("mark-invalid", message, where="@pytest.mark.kdcompile_latency", fix=fix)
