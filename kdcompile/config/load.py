"""From `kdcompile.toml` and `--set` to a checked `Spec`, or an error that names the field."""

import re
import shlex
from collections.abc import Sequence
from functools import reduce
from operator import getitem
from os.path import abspath, isdir, isfile, realpath
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdcompile.config.gates import Gate, Gates
from kdcompile.config.gates import sections as gate_sections
from kdcompile.config.named import MISSPELT
from kdcompile.config.spec import DEFAULT_NAME, Spec
from kdcompile.core import plugins
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.readers import parse_toml, read_toml

SCHEMA = "kdcompile schema prints what each field takes"
WANTED = {  # by the first part of pydantic's types of errors
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a string in quotes",
    "path": "a path in quotes",
    "list": "a list in brackets",
}
MOST_SHOWN = 80  # characters of a refused value
MOST_PARTS = 16  # of a key; no field lies deeper than four
LENGTHS = ("steps", "epochs", "minutes")
PATH_FIELDS = (*((section, field) for section in ("teacher", "teachers")
                 for field in ("weights", "onnx", "program")),
               ("student", "weights"), ("data", "root"), ("quantize", "cache"),
               ("task", "head", "anchors"))  # fmt: skip


def find_spec(argument: str | None) -> Path:
    """The spec file named by a folder, a file, or nothing (the current folder).

    Raises:
        KDError: `spec-missing`; `spec-ambiguous` where other TOML files may be meant.
    """
    given = Path(argument or ".")
    path = given / DEFAULT_NAME if isdir(given) else given
    if isfile(path):
        return Path(abspath(path))
    others = sorted(p.name for p in given.glob("*.toml") if _is_spec(p)) if isdir(given) else []
    if others:
        raise KDError(
            "spec-ambiguous",
            f"there is no {DEFAULT_NAME}, but {' and '.join(others)} may be meant",
            where=abspath(given),
            fix=f"name the file: kdcompile plan {shlex.quote(str(given / others[0]))}",
        )
    raise KDError(
        "spec-missing",
        f"there is no {path.name} here" if argument is None else f"{path} does not exist",
        where=abspath(path),
        fix="kdcompile init --example digits . && kdcompile build --target jetson",
    )


def _is_spec(path: Path) -> bool:
    try:
        return "teacher" in read_toml(path)
    except (OSError, ValueError):
        return False


def parse_set(text: str) -> tuple[list[str], Any]:
    """`a.b=value` as its key path and value; the value is TOML if it parses, else a string."""
    key, mark, raw = text.partition("=")
    parts = key.strip().split(".", MOST_PARTS)
    if not mark or not all(parts) or len(parts) > MOST_PARTS:
        raise KDError(
            "set-syntax",
            f"--set {_shown(text)} is not key=value",
            where="--set",
            fix="write a dotted key and its value, such as --set distill.steps=60",
        )
    try:
        return parts, parse_toml(f"value = {raw}")["value"]
    except ValueError:
        return parts, raw


def load_spec(path: Path, sets: Sequence[str] = (), target: str | None = None) -> Spec:
    """Read and check a spec; path fields come out absolute.

    Args:
        path: the TOML file.
        sets: `key=value` overrides; their paths resolve against the current folder.
        target: overrides the spec's target.

    Raises:
        KDError: `spec-syntax`, `spec-unreadable`, `spec-invalid` or `set-syntax`.
    """
    path = Path(abspath(path))
    return parse_spec(_read(path), path, path.parent, sets, target)


def parse_spec(
    raw: dict[str, Any],
    path: Path,
    base: Path,
    sets: Sequence[str] = (),
    target: str | None = None,
) -> Spec:
    """Check the values of a spec, which come from a file or from a Python caller.

    Args:
        raw: sections by name; changed in place.
        path: the TOML file that they are of, or would be: its folder is the spec's.
        base: what relative paths in `raw` resolve against.
        sets: as for `load_spec`.
        target: as for `load_spec`.

    Raises:
        KDError: `spec-invalid` or `set-syntax`.
    """
    _refuse_null(raw, str(path))
    _absolute_paths(raw, base)
    for text in sets:
        keys, value = parse_set(text)
        override: dict[str, Any] = {}
        _put(override, keys, value, text)
        _refuse_null(override, "--set")
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


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except OSError as error:
        raise KDError(
            "spec-unreadable",
            f"the spec cannot be read: {error.strerror}",
            where=str(path),
            fix="make it a readable file, or name another",
        ) from error
    except ValueError as error:
        raise KDError(
            "spec-syntax",
            f"not valid TOML: {error}",
            where=str(path),
            fix="fix the syntax at the reported line; strings need quotes, and the file is UTF-8",
        ) from error


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
            raise KDError(
                "set-syntax",
                f"--set {_shown(text)}: {_shown(key)} is not a section",
                where="--set",
                fix="name a field of a section; kdcompile schema prints them",
            )
        tree = below
    tree[keys[-1]] = value


def _absolute_paths(raw: dict[str, Any], base: Path) -> None:
    for *sections, key in (*PATH_FIELDS, *_paths_of_gates(raw.get("gates"))):
        values: Any = raw
        for section in sections:
            values = values.get(section) if isinstance(values, dict) else None
        for table in values if isinstance(values, list) else [values]:
            if isinstance(table, dict) and isinstance(table.get(key), str):
                table[key] = realpath(Path(base, table[key]))


def _paths_of_gates(gates: Any) -> list[tuple[str, ...]]:
    """The fields of the named gates that are paths, by the gates' own settings."""
    named = gates if isinstance(gates, dict) else {}
    found = {name: plugins.plugin("gates", name) for name in named}
    return [
        ("gates", name, field)
        for name, gate in found.items()
        if gate is not None and isinstance(gate.value, Gate)
        for field in gate.value.settings.local
    ]


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
        fix = f"use one of {', '.join(sorted(known))}" if known else SCHEMA
        return KDError("spec-invalid", message, where, fix)
    if first["type"] == "missing":
        return KDError("spec-invalid", f"{dotted} is missing{more}", where, f"add {dotted}")
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    got = "" if isinstance(first["input"], dict) else f", got {_shown(first['input'])}"
    named = f"{dotted}: {message}" if dotted else message
    return KDError("spec-invalid", f"{named}{got}{more}", where, _fix(first, dotted))


def _fix(problem: ErrorDetails, dotted: str) -> str:
    """What to write in place of a value that is none."""
    kind, details = problem["type"], problem.get("ctx", {})
    if "fix" in details:
        return str(details["fix"])
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", details["expected"])
        close = nearest(str(problem["input"]), known, MISSPELT)
        return f"use one of {details['expected']}{close}"
    if kind in ("model_type", "model_attributes_type"):
        return f"write it as a section, [{dotted}]"
    wanted = WANTED.get(kind.partition("_")[0])
    return SCHEMA if wanted is None else f"set {dotted} to {wanted}; {SCHEMA}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _known_keys(location: Sequence[str]) -> list[str]:
    """The keys of the section at a place, or none where its keys are free."""
    if location == ["gates"]:
        return plugins.names("gates")
    model: type[BaseModel] = Spec
    for part in location:
        if model is Gates:
            model = gate_sections(location[1:])
        if part.isdigit():  # a place in a list of sections
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        forms = getattr(annotation, "__args__", (annotation,))
        options = [getattr(form, "__origin__", form) for form in forms]
        found = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        if not found:
            return []
        model = found[0]
    return list(model.model_fields)


def _refuse_null(value: Any, where: str) -> None:
    """No string may hold the character that ends a file's name."""
    if isinstance(value, dict):
        for key, below in value.items():
            _refuse_null(key, where)
            _refuse_null(below, f"{where} [{key}]")
    elif isinstance(value, list):
        for below in value:
            _refuse_null(below, where)
    elif isinstance(value, str) and "\0" in value:
        raise KDError(
            "spec-invalid", f"{_shown(value)} holds a null character", where, r"take out \u0000"
        )
