"""What the report says of the engines: how they were built, their layers, and why which is int8."""

from collections.abc import Mapping
from typing import Any

from kdcompile.core.store import Artifact

BUILD = ("bytes", "seconds", "flags", "timing_cache", "deterministic", "dla_fallback")
LAYERS = 40  # of a deep network, the slowest


def compiled_details(inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """The report's `engines`, `layers`, `mixed`, `refinements` and `sensitivity`, where there are.

    Args:
        inputs: the artifacts of calibrate and compile.
    """
    compiled, calibrated = inputs["compile"], inputs["calibrate"]
    found: dict[str, Any] = {}
    if "engines.json" in compiled.files:
        engines = compiled.json("engines.json")
        found["engines"] = {
            precision: {name: made["build"].get(name) for name in BUILD}
            for precision, made in engines.items()
        }
        chosen = engines[compiled.json("choice.json")["precision"]]
        found["layers"] = _layers(chosen)
    if "mixed.json" in compiled.files:
        plan = compiled.json("mixed.json")
        found["mixed"] = {"summary": plan["summary"], "in fp16": plan["reasons"]}
    if "refine.json" in calibrated.files:
        records = calibrated.json("refine.json")
        found["refinements"] = {record["name"]: record["why"] for record in records}
    if "sensitivity.json" in calibrated.files:
        found["sensitivity"] = _sensitivity(calibrated.json("sensitivity.json"))
    return found


def _layers(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The slowest layers of an engine: name, ms a call, share of all layers, precision."""
    profile = made["profile"]
    if profile is None:
        return []
    typed = {layer["name"]: layer.get("precision") for layer in made["build"].get("layers") or ()}
    rows = sorted(profile["layers"], key=lambda layer: -float(layer["ms"]))
    return [
        {
            "name": layer["name"],
            "ms": layer["ms"],
            "share": layer["ms"] / profile["total_ms"] if profile["total_ms"] else None,
            "precision": layer.get("precision") or typed.get(layer["name"]),
        }
        for layer in rows[:LAYERS]
    ]


def _sensitivity(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a layer, the most sensitive first; SQNR in dB against fp32."""
    return [
        {
            "layer": layer["layer"],
            "macs_share": layer["macs_share"],
            "alone_sqnr_db": layer["alone"]["sqnr_db"],
            "alone_metric": layer["alone"]["metric"],
            "without_sqnr_db": layer["without"]["sqnr_db"],
            "without_metric": layer["without"]["metric"],
        }
        for layer in record["layers"]
    ]
