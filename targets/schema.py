"""The closed schema of a target file: what it may say, and that each value names its source."""

import re
from collections.abc import Mapping
from typing import Any

from kdcompile.core.errors import KDError, nearest
from kdcompile.core.readers import parse_toml

KINDS = ("jetson", "workstation", "cpu")
PROVENANCE = ("measured", "derived", "datasheet")

BACKENDS = {"jetson": "tensorrt", "workstation": "tensorrt", "cpu": "onnxruntime"}  # by default

_TOP = {"name", "title", "kind", "backend", "aliases", "default_mode", "default_jetpack",
        "sources", "facts", "modes", "nvidia"}  # fmt: skip
_FACTS = {"memory_gb", "l2_mb", "precisions", "channel_tile", "launch_us"}
_NVIDIA = {"compute_capability", "sm_count", "dla"}
_TENSORRT = {"tensorrt_min", "tensorrt_max"}
_MODE = {"gpu_mhz", "bandwidth_gbs", "sm_count", "min_jetpack", "peak_tflops"}
_JETPACK = {"l4t", "cuda", "tensorrt", "python"}
_TEXT = _JETPACK | _TENSORRT | {"compute_capability", "min_jetpack"}
WRONG = (AttributeError, LookupError, TypeError, ValueError)  # of reading a document of other types


def parse(text: str, module: str) -> dict[str, Any]:
    """The table of a target file.

    Raises:
        KDError: `target-invalid`: no TOML, or as `validate`.
    """
    try:
        table = with_vendor(parse_toml(text))
        validate(table, module)
    except WRONG as error:
        raise invalid(module, "file", f"a value of another type: {error}") from error
    return table


def with_vendor(table: dict[str, Any]) -> dict[str, Any]:
    """A target file in today's form: version 1 had the facts of a vendor among the others."""
    facts = table.get("facts", {})
    if table.get("kind") == "cpu":
        if "sm_count" in facts:
            facts["cores"] = facts.pop("sm_count")
        facts.pop("dla", None)
        return table
    moved = {key: facts.pop(key) for key in _NVIDIA | _TENSORRT if key in facts}
    if "jetpacks" in table:
        moved["jetpacks"] = table.pop("jetpacks")
    if moved:
        table["nvidia"] = moved | table.get("nvidia", {})
    return table


def vendors(table: Mapping[str, Any]) -> list[str]:
    """The names of a target file's vendor tables: what is about one maker's devices only."""
    return [key for key in table if key not in _TOP or key == "nvidia"]


def validate(table: Mapping[str, Any], module: str) -> None:
    """Hold a parsed target file against the closed schema.

    Beside the known tables there may be one of another vendor, of facts that its backend reads.

    Raises:
        KDError: an unknown or missing key, or a value without its source.
    """
    others = {key for key in set(table) - _TOP if _is_facts(table[key])}
    keys(module, "top level", table, _TOP | others, {"name", "title", "kind", "default_mode",
                                                      "sources", "facts", "modes"})  # fmt: skip
    if table["name"] != module or table["kind"] not in KINDS:
        raise invalid(module, "name, kind", f"{table['name']!r}, {table['kind']!r}")
    cores = {"cores"} if table["kind"] == "cpu" else set()
    keys(module, "facts", table["facts"], _FACTS | cores, _FACTS | cores)
    groups = {"facts": table["facts"], **{key: table[key] for key in sorted(others)}}
    if "nvidia" in table or not cores:
        groups |= _nvidia(module, table)
    for key, mode in table["modes"].items():
        keys(module, f"modes.{key}", mode, _MODE, {"bandwidth_gbs", "peak_tflops"})
        groups[f"modes.{key}"] = {k: v for k, v in mode.items() if k != "peak_tflops"}
        groups[f"modes.{key}.peak_tflops"] = mode["peak_tflops"]
    for where, group in groups.items():
        for key, fact in group.items():
            _fact(module, f"{where}.{key}", fact, table["sources"], where in others)
    if table["default_mode"] not in table["modes"]:
        raise invalid(module, "default_mode", f"no mode {table['default_mode']!r}")


def _nvidia(module: str, table: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The groups of facts of NVIDIA's table: the GPU, and each JetPack of a Jetson."""
    found, kind = table.get("nvidia", {}), table["kind"]
    needed = _NVIDIA | (_TENSORRT if kind == "workstation" else set())
    keys(module, "nvidia", found, _NVIDIA | _TENSORRT | {"jetpacks"}, needed)
    jetpacks = found.get("jetpacks", {})
    if (kind == "jetson") != bool(jetpacks):
        raise invalid(module, "nvidia.jetpacks", "a Jetson has some, and nothing else does")
    if table.get("default_jetpack") not in (jetpacks or {None: None}):
        raise invalid(module, "default_jetpack", "names no JetPack of this file")
    groups: dict[str, Mapping[str, Any]] = {}
    groups["nvidia"] = {key: fact for key, fact in found.items() if key != "jetpacks"}
    for key, jetpack in jetpacks.items():
        keys(module, f"nvidia.jetpacks.{key}", jetpack, _JETPACK, _JETPACK)
        groups[f"nvidia.jetpacks.{key}"] = jetpack
    return groups


def _is_facts(table: Any) -> bool:
    """Whether this is a table of facts and nothing else."""
    return isinstance(table, dict) and bool(table) and all(
        isinstance(fact, dict) and "value" in fact for fact in table.values()
    )  # fmt: skip


def keys(module: str, where: str, found: Any, known: set[str], needed: set[str]) -> None:
    """Refuse what is no table, or one with keys that are not known or without needed ones."""
    if not isinstance(found, Mapping):
        raise invalid(module, where, f"{found!r} is no table")
    for key in sorted(set(found) - known):
        raise invalid(module, where, f"unknown key {key!r}{nearest(key, known)}")
    for key in sorted(needed - set(found)):
        raise invalid(module, where, f"key {key!r} is missing")


def _fact(
    module: str, where: str, fact: Any, sources: Mapping[str, str], is_free: bool = False
) -> None:
    """One value, with a known kind of provenance and a source that is written out.

    A value that `is_free` may be text or a number, as its vendor's backend reads it.
    """
    if not isinstance(fact, dict) or set(fact) != {"value", "kind", "source"}:
        raise invalid(module, where, "a fact is { value = ..., kind = ..., source = ... }")
    if fact["kind"] not in PROVENANCE:
        raise invalid(module, where, f"kind {fact['kind']!r}{nearest(fact['kind'], PROVENANCE)}")
    if not sources.get(fact["source"]):
        raise invalid(module, where, f"[sources] has no {fact['source']!r}")
    key, value = where.rsplit(".", 1)[1], fact["value"]
    plain: Any = str if key in _TEXT else (int, float)
    wanted = (str, int, float) if is_free else list if key == "precisions" else plain
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


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `10.3.0.post1` gives (10, 3, 0).

    Raises:
        KDError: `target-backend`, it begins with no number.
    """
    found = re.match(r"\d+(\.\d+)*", text)
    if found is None:
        raise KDError("target-backend", f"{text!r} is not a version number", fix="such as 10.3")
    return tuple(int(part) for part in found.group().split("."))
