"""The device that builds and times an engine, as a build knows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdcompile.core.report import Evidence


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
