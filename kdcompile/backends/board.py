"""Where engines are built and timed: this machine, another interpreter, or a board."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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

    ONNX Runtime on a CPU only plays a board: `host`.

    Raises:
        KDError: `board-mismatch`, a GPU that is another device than the target.
    """
    gpu = about["gpu"]
    if gpu is None:
        return "host"
    for name, here, wanted in _compared(about, target):
        if here != wanted:
            raise KDError(
                "board-mismatch",
                f"{target.full_name} has {name} {wanted}; {label} has {here}",
                where=label,
                fix="name the device that it is with --target (kdcompile targets; for a Jetson "
                "NAME@jpJETPACK), or another one with --via",
            )
    return "device"


def _compared(about: Mapping[str, Any], target: Target) -> list[tuple[str, str, str]]:
    """What must agree, as (name, there, the target's)."""
    found = [("compute capability", about["gpu"]["compute_capability"], target.compute_capability)]
    if target.kind == "jetson" and target.tensorrt and about["backend"] == "tensorrt":
        generation = ".".join(about["backend_version"].split(".")[:2])
        found.append(("TensorRT", generation, ".".join(target.tensorrt.split(".")[:2])))
    if target.kind == "jetson":
        found.append(("module", _kind(about["module"] or "none"), _kind(target.title)))
    return [(name, str(here), str(wanted)) for name, here, wanted in found]


def _kind(title: str) -> str:
    """The family of a Jetson that a title names: AGX Orin, Orin NX, Orin Nano, Xavier NX, ..."""
    text = title.lower()
    known = ("agx orin", "orin nx", "orin nano", "agx xavier", "xavier nx", "thor")
    return next((name for name in known if name in text), title)
