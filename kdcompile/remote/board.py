"""Where engines are built and timed: this machine, another interpreter, or a board."""

from collections.abc import Mapping
from typing import Any

from kdcompile.core.backends import find
from kdcompile.core.errors import KDError
from kdcompile.core.report import Evidence
from kdcompile.targets import Target

# of hello: what a measurement there depends on, and stays put between two runs
FACTS = ("backend", "backend_version", "platform", "module", "power_mode", "l4t", "python")


def facts_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """The lasting part of a worker's hello."""
    gpu = about["gpu"]
    lasting = None if gpu is None else {k: gpu[k] for k in ("name", "compute_capability")}
    return {name: about[name] for name in FACTS} | {"gpu": lasting}


def evidence_of(about: Mapping[str, Any], target: Target, label: str) -> Evidence:
    """`device` where the backend finds nothing that differs from the target.

    A backend that only stands in for the target's, such as ONNX Runtime for a Jetson's TensorRT,
    measures `host` evidence.

    Raises:
        KDError: `board-mismatch`, another device than the target.
    """
    wrong = find(str(about["backend"])).differences(target, about)
    if wrong is None:
        return "host"
    if wrong:
        raise KDError(
            "board-mismatch",
            f"{label} is not {target.full_name}: {'; '.join(wrong)}",
            where=label,
            fix="name the device that it is with --target (kdcompile targets; for a Jetson "
            "NAME@jpJETPACK), or another one with --via",
        )
    return "device"
