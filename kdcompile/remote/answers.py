"""Checks of a worker's answers: whatever answers there may be broken, or no worker at all.

An answer is held against its operation's form before anything reads it, and loses the characters
that would speak to a terminal, so that its text may be shown anywhere.
"""

from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from kdcompile.core.errors import plain
from kdcompile.remote.agent.messages import MOST_BYTES
from kdcompile.remote.answer_types import CLOCKS, FORMS, Failure, Form, Unread
from kdcompile.remote.process import BadAnswer, parsed

MOST_DEEP = 30
MOST_CHARS = 4000  # of an error's text


def checked(op: str, value: Any, *, samples: bool = False) -> dict[str, Any]:
    """An answer of the form that its operation has, as it may be shown.

    Args:
        op: the operation.
        value: what came as `ok`.
        samples: were asked for, each inference's time.

    Raises:
        BadAnswer: with the field and what is wrong with it.
    """
    if not isinstance(value, dict):
        raise BadAnswer(f"a {type(value).__name__} where an object belongs")
    found: dict[str, Any] = cleaned(value)
    form = Unread if op == "power" and "unavailable" in found else FORMS.get(op, Form)
    _hold(form, found)
    if samples and not any((found.get("samples") or {}).get(clock) for clock in CLOCKS):
        raise BadAnswer("samples: there are none")
    return found


def failure(value: Any) -> dict[str, str]:
    """The error that a worker tells, as it may be shown.

    Raises:
        BadAnswer: it is none.
    """
    if not isinstance(value, dict):
        raise BadAnswer(f"error: a {type(value).__name__} where an object belongs")
    found = cleaned(value)
    _hold(Failure, found)
    return {key: str(found[key])[:MOST_CHARS] for key in Failure.model_fields}


def record(path: Path) -> dict[str, Any]:
    """The record beside an engine, of a file that came from a place.

    Raises:
        BadAnswer: it is none.
    """
    if path.stat().st_size > MOST_BYTES:
        raise BadAnswer(f"the engine's record has more than {MOST_BYTES >> 20} MiB")
    try:
        return checked("build", parsed(path.read_bytes()))
    except ValueError as error:
        raise BadAnswer("the engine's record is no JSON") from error


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The outputs of a network, of a file that came from a place.

    Raises:
        BadAnswer: it is none.
    """
    try:
        with ZipFile(path) as opened:
            entries = opened.infolist()
        # a small file may be a large one: packed, or with members that share their bytes
        if any(entry.compress_type != ZIP_STORED for entry in entries):
            raise BadAnswer("outputs that are packed")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise BadAnswer("outputs that are more than their file")
        with np.load(path, allow_pickle=False) as found:
            outputs = {plain(key): found[key] for key in found.files}
    except (OSError, ValueError, EOFError, MemoryError, BadZipFile, RuntimeError) as error:
        raise BadAnswer("the outputs are no npz file of arrays") from error
    if not outputs or any(array.dtype.kind not in "fiub" for array in outputs.values()):
        raise BadAnswer("the outputs are no arrays of numbers")
    return outputs


def cleaned(value: Any, depth: int = 0) -> Any:
    """A JSON value whose texts have no characters that a terminal obeys.

    Raises:
        BadAnswer: it is nested too deep.
    """
    if depth > MOST_DEEP:
        raise BadAnswer("it is nested too deep")
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list):
        return [cleaned(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return {plain(key): cleaned(one, depth + 1) for key, one in value.items()}
    return value


def _hold(form: type[Form], found: dict[str, Any]) -> None:
    try:
        form.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))[:200]
        raise BadAnswer(f"{place}: {first['msg']}" if place else str(first["msg"])) from None
