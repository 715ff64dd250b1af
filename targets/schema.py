"""The closed schema of a target file: what it may say, and that each value names its source."""

import tomllib
from collections.abc import Mapping
from typing import Any

from kdcompile.core.errors import KDError, nearest

KINDS = ("jetson", "workstation", "cpu")
PROVENANCE = ("measured", "derived", "datasheet")

_TOP = {"name", "title", "kind", "aliases", "default_mode", "default_jetpack", "sources", "facts",
        "modes", "jetpacks"}  # fmt: skip
_REQUIRED = {"sm_count", "memory_gb", "l2_mb", "dla", "precisions", "channel_tile", "launch_us"}
_FACTS = _REQUIRED | {"compute_capability", "tensorrt_min", "tensorrt_max"}
_MODE = {"gpu_mhz", "bandwidth_gbs", "sm_count", "min_jetpack", "peak_tflops"}
_JETPACK = {"l4t", "cuda", "tensorrt", "python"}
_TEXT = _JETPACK | {"compute_capability", "tensorrt_min", "tensorrt_max", "min_jetpack"}
WRONG = (AttributeError, LookupError, TypeError, ValueError)  # of reading a document of other types


def parse(text: str, module: str) -> dict[str, Any]:
    """The table of a target file.

    Raises:
        KDError: `target-invalid`: no TOML, or as `validate`.
    """
    try:
        table = toml(text)
        validate(table, module)
    except WRONG as error:
        raise invalid(module, "file", f"a value of another type: {error}") from error
    return table


def toml(text: str) -> dict[str, Any]:
    """A TOML document that anybody may have written.

    Raises:
        ValueError: it is none, or nested too deep.
    """
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def validate(table: Mapping[str, Any], module: str) -> None:
    """Hold a parsed target file against the closed schema.

    Raises:
        KDError: an unknown or missing key, or a value without its source.
    """
    keys(module, "top level", table, _TOP, {"name", "title", "kind", "default_mode", "sources",
                                             "facts", "modes"})  # fmt: skip
    if table["name"] != module or table["kind"] not in KINDS:
        raise invalid(module, "name, kind", f"{table['name']!r}, {table['kind']!r}")
    software = {"workstation": {"tensorrt_min", "tensorrt_max"}}.get(table["kind"], set())
    keys(module, "facts", table["facts"], _FACTS, _REQUIRED | software)
    if (table["kind"] == "jetson") != bool(table.get("jetpacks")):
        raise invalid(module, "jetpacks", "a Jetson has some, and nothing else does")
    groups = {"facts": table["facts"]}
    for key, mode in table["modes"].items():
        keys(module, f"modes.{key}", mode, _MODE, {"bandwidth_gbs", "peak_tflops"})
        groups[f"modes.{key}"] = {k: v for k, v in mode.items() if k != "peak_tflops"}
        groups[f"modes.{key}.peak_tflops"] = mode["peak_tflops"]
    for key, jetpack in table.get("jetpacks", {}).items():
        keys(module, f"jetpacks.{key}", jetpack, _JETPACK, _JETPACK)
        groups[f"jetpacks.{key}"] = jetpack
    for where, group in groups.items():
        for key, fact in group.items():
            _fact(module, f"{where}.{key}", fact, table["sources"])
    if table["default_mode"] not in table["modes"]:
        raise invalid(module, "default_mode", f"no mode {table['default_mode']!r}")
    if table.get("default_jetpack") not in (table.get("jetpacks") or {None: None}):
        raise invalid(module, "default_jetpack", "names no JetPack of this file")


def keys(module: str, where: str, found: Any, known: set[str], needed: set[str]) -> None:
    """Refuse what is no table, or one with keys that are not known or without needed ones."""
    if not isinstance(found, Mapping):
        raise invalid(module, where, f"{found!r} is no table")
    for key in sorted(set(found) - known):
        raise invalid(module, where, f"unknown key {key!r}{nearest(key, known)}")
    for key in sorted(needed - set(found)):
        raise invalid(module, where, f"key {key!r} is missing")


def _fact(module: str, where: str, fact: Any, sources: Mapping[str, str]) -> None:
    """One value, with a known kind of provenance and a source that is written out."""
    if not isinstance(fact, dict) or set(fact) != {"value", "kind", "source"}:
        raise invalid(module, where, "a fact is { value = ..., kind = ..., source = ... }")
    if fact["kind"] not in PROVENANCE:
        raise invalid(module, where, f"kind {fact['kind']!r}{nearest(fact['kind'], PROVENANCE)}")
    if not sources.get(fact["source"]):
        raise invalid(module, where, f"[sources] has no {fact['source']!r}")
    key, value = where.rsplit(".", 1)[1], fact["value"]
    wanted = list if key == "precisions" else str if key in _TEXT else (int, float)
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise invalid(module, where, f"{value!r} has the wrong type")


def invalid(module: str, where: str, message: str) -> KDError:
    """The error of a target file that breaks its schema."""
    return KDError(
        "target-invalid",
        f"{where}: {message}",
        where=f"targets/{module}.toml",
        fix="compare it with another file in targets/",
    )
