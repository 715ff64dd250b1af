"""One planned stage with what it may read, the argument of every pass; the board of a build."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdcompile.config.spec import Spec
from kdcompile.core.report import Evidence
from kdcompile.core.store import Artifact


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


@dataclass(frozen=True)
class Step:
    """One planned stage: the parts of the spec that it may read, and the artifacts it takes.

    Args:
        board: where an engine is built and timed; None where this machine is all there is.
        trusted: public key that must have signed an earlier bundle that the stage opens; None for
            that of the environment.
        expect: what that bundle's manifest must say.
    """

    stage: str
    key: str
    spec: Spec
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    board: Board | None = None
    trusted: Path | None = None
    expect: Mapping[str, str] = field(default_factory=dict)
