"""From `kdcompile.toml` and `--set` to a checked `Spec`, or an error that names the field."""

import os
import tomllib
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from kdcompile.errors import KDError, nearest
from kdcompile.spec import DEFAULT_NAME, Spec

LENGTHS = ("steps", "epochs", "minutes")
PATH_FIELDS = (("teacher", "weights"), ("student", "weights"), ("data", "root"),
               ("quantize", "cache"), ("gates", "previous", "bundle"))  # fmt: skip


def find_spec(argument: str | None) -> Path:
    """The spec file named by a folder, a file, or nothing (the current folder).

    Raises:
        KDError: `spec-missing`.
    """
    given = Path(argument or ".")
    path = given / DEFAULT_NAME if given.is_dir() else given
    if not path.is_file():
        raise KDError(
            "spec-missing",
            f"there is no {path.name} here" if argument is None else f"{path} does not exist",
            where=str(path.absolute()),
            fix="kdcompile init --example digits . && kdcompile build --target jetson",
        )
    return Path(os.path.abspath(path))


def parse_set(text: str) -> tuple[list[str], Any]:
    """`a.b=value` as its key path and value; the value is TOML if it parses, else a string."""
    key, mark, raw = text.partition("=")
    parts = key.strip().split(".")
    if not mark or not all(parts):
        raise KDError(
            "set-syntax", f"--set {text!r} is not key=value", fix="--set distill.steps=60"
        )
    try:
        return parts, tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return parts, raw


def load_spec(path: Path, sets: Sequence[str] = (), target: str | None = None) -> Spec:
    """Read and check a spec; path fields come out absolute.

    Args:
        path: the TOML file.
        sets: `key=value` overrides; their paths resolve against the current folder.
        target: overrides the spec's target.

    Raises:
        KDError: `spec-syntax`, `spec-invalid` or `set-syntax`.
    """
    path = Path(os.path.abspath(path))
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise KDError(
            "spec-syntax", f"not valid TOML: {error}", str(path), "mend the line that is named"
        ) from error
    _absolute_paths(raw, path.parent)
    for text in sets:
        keys, value = parse_set(text)
        override: dict[str, Any] = {}
        _put(override, keys, value, text)
        _absolute_paths(override, Path.cwd())
        if len(keys) == 2 and keys[0] == "distill" and keys[1] in LENGTHS:
            _drop_lengths(raw)
        _put(raw, keys, reduce(getitem, keys, override), text)
    if target is not None:
        raw["target"] = target
    try:
        spec = Spec.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, path) from error
    return spec.at(path)


def _drop_lengths(raw: dict[str, Any]) -> None:
    """A length on the command line replaces whichever the file has."""
    distill = raw.get("distill")
    if isinstance(distill, dict):
        for key in LENGTHS:
            distill.pop(key, None)


def _put(tree: dict[str, Any], keys: Sequence[str], value: Any, text: str) -> None:
    for key in keys[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise KDError("set-syntax", f"--set {text!r}: {key} is not a section", fix="see schema")
        tree = below
    tree[keys[-1]] = value


def _absolute_paths(raw: dict[str, Any], base: Path) -> None:
    for *sections, key in PATH_FIELDS:
        values: Any = raw
        for section in sections:
            values = values.get(section) if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(values.get(key), str):
            values[key] = str(Path(base, values[key]).resolve())


def _explain(error: ValidationError, path: Path) -> KDError:
    """The first problem, with the nearest known key where the key is unknown."""
    first = error.errors()[0]
    # <range> and its like tell forms of a field apart: no keys
    location = [str(part) for part in first["loc"] if not str(part).startswith("<")]
    dotted = ".".join(location)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    where = f"{path} [{dotted}]" if dotted else str(path)
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        message = f"unknown key {dotted!r}{nearest(location[-1], known)}{more}"
        return KDError("spec-invalid", message, where, f"use one of {', '.join(sorted(known))}")
    if first["type"] == "missing":
        return KDError("spec-invalid", f"{dotted} is missing{more}", where, f"add {dotted}")
    message = first["msg"].removeprefix("Value error, ")
    got = "" if isinstance(first["input"], dict) else f", got {first['input']!r}"
    fix = "kdcompile schema prints what each field takes"
    named = f"{dotted}: {message}" if dotted else message
    return KDError("spec-invalid", f"{named}{got}{more}", where, fix)


def _known_keys(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Spec
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        forms = getattr(annotation, "__args__", (annotation,))
        options = [getattr(form, "__origin__", form) for form in forms]
        found = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)
