"""Check that a connected device is the target itself, in the power mode that is asked for."""

import re
from collections.abc import Mapping
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.remote.open import evidence_of
from kdcompile.targets import Target, load, names

# one of them in a GPU's name and not in the target's title: another card of the same chip
VARIANTS = {"laptop", "mobile", "max", "ti", "super", "pcie", "nvl", "mig", "d"}


def check_device(about: Mapping[str, Any], target: Target, label: str) -> None:
    """Refuse a device that is another device than the target, or in another power mode.

    Args:
        about: the agent's answer to `hello`.
        target: what is to be calibrated.
        label: how the device is named in messages.

    Raises:
        KDError: `calibrate-place`, a CPU measures for a GPU; `board-mismatch`, another device;
            `calibrate-mode`, another power mode.
    """
    if target.kind == "cpu":
        return
    if about["gpu"] is None:
        raise KDError(
            "calibrate-place",
            f"{label} measures a CPU, and {target.name} is {target.title}",
            where=label,
            fix=f"kdcompile targets calibrate {target.name} --via ssh://BOARD, with TensorRT "
            "there; or calibrate this machine: kdcompile targets calibrate cpu",
        )
    why = difference(about, target)
    if why:
        raise _mismatch(about, target, label, why)
    running = mode_of(about, target)
    if running not in (None, target.power_mode):
        raise KDError(
            "calibrate-mode",
            f"{label} is in power mode {running}, and {target.full_name} was requested",
            where=label,
            fix=f"kdcompile targets calibrate {target.name}@{running}, or set the mode there: "
            "sudo nvpmodel -m NUMBER",
        )


def difference(about: Mapping[str, Any], target: Target) -> str:
    """What keeps a GPU from being the target's; empty on the target itself."""
    try:
        evidence_of(about, target, "it")
    except KDError as error:
        return error.message
    name = about["gpu"]["name"]
    words, title = _words(name), _words(target.title)
    if target.kind != "workstation":
        return ""
    if not _words(target.name) <= words or (words & VARIANTS) - title:
        return f"its GPU is {name}, the target is {target.title}"
    return ""


def mode_of(about: Mapping[str, Any], target: Target) -> str | None:
    """The target's power mode that nvpmodel names; None where it names none of them.

    A mode may be worded `MODE_15W_6CORE`, and MAXN is not MAXN_SUPER: the longest match counts.
    """
    words = _words(about.get("power_mode") or "")
    known = [mode for mode in target.power_modes if _words(mode) <= words]
    return max(known, key=lambda mode: len(_words(mode)), default=None)


def _mismatch(about: Mapping[str, Any], target: Target, label: str, why: str) -> KDError:
    known = [load(name, calibrated=False) for name in names()]
    right = [t.name for t in known if t.kind == target.kind and not difference(about, t)]
    fix = " or ".join(f"kdcompile targets calibrate {name}" for name in right)
    return KDError(
        "board-mismatch",
        f"{label} is not {target.full_name}: {why}",
        where=label,
        fix=fix or "no target is this device; kdcompile targets lists the known ones",
    )


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))
