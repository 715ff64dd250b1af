"""The blocks that a staged student is made of, as what is measured of each depends on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SETTINGS = ("block", "width", "depth", "stride", "down", "dilation")


@dataclass(frozen=True)
class Block:
    """A stage of a student, and where it stands; all that its result depends on but the lessons.

    index: of the stage and of the cut that it imitates; in_width: channels that enter; scale: of
    the image that the student sees; before: strides of the stages before it, multiplied.
    """

    index: int
    in_width: int
    scale: float
    before: int
    block: str
    width: int
    depth: int
    stride: int
    down: str
    dilation: int

    @property
    def settings(self) -> dict[str, Any]:
        """The stage as an architecture writes it."""
        return {name: getattr(self, name) for name in SETTINGS}


def blocks_of(architecture: Mapping[str, Any]) -> list[Block]:
    """The blocks of a `staged` architecture; two students that share one have equal blocks."""
    found, before, inputs = [], 1, int(architecture["in_channels"])
    scale = float(architecture["input_scale"])
    for index, given in enumerate(architecture["stages"]):
        settings = {name: given[name] for name in SETTINGS}
        if settings["stride"] == 1:
            settings["down"] = "pool"  # nothing is pooled, whatever it says
        found.append(Block(index, inputs, scale, before, **settings))
        before, inputs = before * int(given["stride"]), int(given["width"])
    return found
