"""The record that is written with an engine, and what is checked before one runs."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import numpy as np

from kdcompile.remote.agent.errors import WorkerError
from kdcompile.remote.agent.system import write_file

RECORD = ("sha256", "compute_capability", "platform")


def write_engine(engine: str, blob: bytes, about: dict[str, Any]) -> dict[str, Any]:
    """Write an engine and beside it, as ENGINE.json, what `preflight` will ask for.

    The record is first, so that a build that is cut off leaves no engine without one.
    """
    write_file(engine + ".json", json.dumps(about, sort_keys=True).encode())
    write_file(engine, blob)
    return about


def preflight(path: str, blob: bytes, here: dict[str, Any], expected: Any) -> dict[str, Any]:
    """The record of an engine that is whole and of this machine, else an error that says why not.

    Args:
        path: of the engine; the record is beside it.
        blob: the engine.
        here: `backend`, its `version`, and the `compute_capability` and `platform` of here.
        expected: stands in for the record; it must have what a record has.
    """
    built = _read_record(path) if expected is None else expected
    named = built if isinstance(built, dict) else {}
    known = [backend for backend in ("tensorrt", "onnxruntime") if backend in named]
    if len(known) != 1 or any(key not in named for key in RECORD):
        wanted = ", ".join(("tensorrt or onnxruntime", *RECORD))
        raise WorkerError("engine-unknown", f"the record of {path} lacks one of {wanted}")
    if hashlib.sha256(blob).hexdigest() != built["sha256"]:
        size = built.get("bytes")
        short = isinstance(size, int) and len(blob) < size
        what = f"truncated: {len(blob)} of {size} bytes" if short else "its SHA-256 is another"
        raise WorkerError("engine-damaged", f"{path} is not what was built: {what}")
    backend, version = known[0], str(built[known[0]])
    same = backend == here["backend"] and version.split(".")[:3] == here["version"].split(".")[:3]
    if not same or any(built[k] != here[k] for k in RECORD[1:]):
        there = _origin(backend, version, built)
        now = _origin(here["backend"], here["version"], here)
        raise WorkerError("engine-mismatch", f"built by {there}; here {now}")
    return dict(built)


def _origin(backend: str, version: str, facts: dict[str, Any]) -> str:
    capability = facts["compute_capability"]
    gpu = f" for sm_{str(capability).replace('.', '')}" if capability else ""
    return f"{backend} {version}{gpu} on {facts['platform']}"


def _read_record(path: str) -> Any:
    if not os.path.isfile(path + ".json"):
        raise WorkerError("engine-unknown", f"no {path}.json says what built {path}")
    with open(path + ".json", "rb") as stream:
        try:
            return json.loads(stream.read().decode())
        except ValueError as error:
            raise WorkerError("engine-unknown", f"{path}.json is no record: {error}") from error


def check_inputs(arrays: dict[str, Any], types: dict[str, Any],
                 names: list[str]) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """The shapes of a network's inputs, once all are there and of a type that it takes."""
    for name in names:
        if name not in arrays:
            given = ", ".join(arrays) or "nothing"
            raise WorkerError("input-missing", f"no array for input {name}; given {given}")
        if not np.can_cast(arrays[name].dtype, types[name], "same_kind"):
            text = f"{name} is {types[name]}, the array {arrays[name].dtype}"
            raise WorkerError("input-refused", text)
    return {name: tuple(arrays[name].shape) for name in names}
