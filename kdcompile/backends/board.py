"""Where engines are built and timed: this machine, another interpreter, or a board."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcompile.backends.same_board import differences
from kdcompile.errors import KDError
from kdcompile.report import Evidence
from kdcompile.targets import Target

# of hello: what a measurement there depends on, and stays put between two runs
FACTS = ("backend", "backend_version", "platform", "module", "power_mode", "l4t", "python")


@dataclass(frozen=True)
class Board:
    """One place with one backend.

    Args:
        via: the transport, such as `python:/opt/trt/bin/python`; None for this interpreter.
        backend: of the worker there: tensorrt, onnxruntime, onnxruntime-cuda, ...
        label: how the place calls itself; no secret is in it.
        facts: what a measurement there depends on; they are in the keys of the stages that measure.
        evidence: what a measurement there proves of the target.
    """

    via: str | None
    backend: str
    label: str
    facts: Mapping[str, Any]
    evidence: Evidence

    @property
    def version(self) -> str:
        """Of the backend."""
        return str(self.facts["backend_version"])

    @property
    def machine(self) -> str:
        """The device's own name."""
        gpu = self.facts["gpu"] or {}
        return str(self.facts["module"] or gpu.get("name") or self.facts["platform"])


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
