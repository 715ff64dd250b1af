"""Differences of a machine from the device that a build is for: `device` evidence has none.

Used by kdcompile and, as a copy in the kit, on the board: Python 3.8 and its standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FAMILY_WORDS = {"nano", "nx", "agx", "orin", "xavier", "thor", "tx2"}
MIB_PER_GB = 1024.0
MEMORY_SHARE = (0.75, 1.05)  # of the nominal memory; firmware and carve-outs keep the rest


def same_generation(found: str, wanted: str) -> bool:
    """Whether a TensorRT version has the major of `wanted`, and no older minor."""
    have, want = ([int(part) for part in text.split(".")[:2]] for text in (found, wanted))
    return have[0] == want[0] and have[1:] >= want[1:]


def differences(target: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What keeps a measurement on a machine from being one of the target.

    Args:
        target: `name`, `title`, `compute_capability`, `tensorrt` and `memory_gb` of the target.
        here: the worker's answer to `hello`.

    Returns:
        One sentence a difference; empty on the target itself.
    """
    if here["backend"] != "tensorrt":
        return [f"the backend is {here['backend']}, not TensorRT"]
    found = []
    if not same_generation(here["backend_version"], target["tensorrt"]):
        found.append(f"TensorRT {here['backend_version']}, the target has {target['tensorrt']}")
    capability = (here["gpu"] or {}).get("compute_capability")
    if capability != target["compute_capability"]:
        found.append(
            f"compute capability {capability}, the target has {target['compute_capability']}"
        )
    if not _same_module(here["module"], target["name"]):
        named = here["module"] or "no module in /proc/device-tree/model"
        found.append(f"{named}, the target is {target['title']}")
    total = (here.get("memory_mb") or {}).get("total")
    low, high = (share * target["memory_gb"] * MIB_PER_GB for share in MEMORY_SHARE)
    if total is not None and not low <= total <= high:
        found.append(f"{total:.0f} MB of memory, the target has {target['memory_gb']:g} GB")
    return found


def _same_module(model: str | None, target: str) -> bool:
    """Whether a device-tree model and a target's name are of one family.

    A model may say less than the name (`Jetson-AGX` of a Xavier) or more (`AGX Thor`), but no
    other family; the compute capability and the memory tell apart what the words leave open.
    """
    found, wanted = (
        FAMILY_WORDS & set(re.findall(r"[a-z]+\d*", (text or "").lower()))
        for text in (model, target)
    )
    return bool(found) and (found <= wanted or wanted <= found)
