"""One planned stage with what it may read: the argument of every pass."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdcompile.config.board import Board
from kdcompile.config.spec import Spec
from kdcompile.core.store import Artifact


@dataclass(frozen=True)
class Step:
    """One planned stage: the parts of the spec that it may read, and the artifacts it takes.

    `board` is where an engine is built and timed; None where this machine is all there is.
    """

    stage: str
    key: str
    spec: Spec
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    board: Board | None = None
