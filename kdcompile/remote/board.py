"""Where engines are built and timed: this machine, another interpreter, or a board."""

from collections.abc import Mapping
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.core.report import Evidence
from kdcompile.remote.same_board import differences
from kdcompile.targets import Target

# of hello: what a measurement there depends on, and stays put between two runs
FACTS = ("backend", "backend_version", "platform", "module", "power_mode", "l4t", "python")


def facts_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """The lasting part of a worker's hello."""
    gpu = about["gpu"]
    lasting = None if gpu is None else {k: gpu[k] for k in ("name", "compute_capability")}
    return {name: about[name] for name in FACTS} | {"gpu": lasting}


def evidence_of(about: Mapping[str, Any], target: Target, label: str) -> Evidence:
    """`device` where the GPU, the module and the backend's generation are the target's.

    ONNX Runtime on a CPU only plays a board, and on a Jetson's GPU it is not what ships: `host`.

    Raises:
        KDError: `board-mismatch`, a GPU that is another device than the target.
    """
    gpu = about["gpu"]
    if gpu is None or (target.kind == "jetson" and about["backend"] != "tensorrt"):
        return "host"
    if target.kind == "jetson":
        wrong = differences(target.to_json(), about)
    else:
        here, wanted = gpu["compute_capability"], target.compute_capability
        wrong = [] if here == wanted else [f"compute capability {here}, the target has {wanted}"]
    if wrong:
        raise KDError(
            "board-mismatch",
            f"{label} is not {target.full_name}: {'; '.join(wrong)}",
            where=label,
            fix="name the device that it is with --target (kdcompile targets; for a Jetson "
            "NAME@jpJETPACK), or another one with --via",
        )
    return "device"
