"""Students with fewer blocks, for a budget that no width of the whole network reaches."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from kdcompile.models.dropped import droppable, is_gone
from kdcompile.models.examples import Example
from kdcompile.models.resize import CONVOLUTIONS

SHARES = (0.25, 0.5, 0.75, 1.0)  # of the blocks, that are left out together


def residual_blocks(teacher: nn.Module, example: Example) -> list[str]:
    """The blocks that are near the identity and give the size that they take, in their order."""
    found = droppable(teacher, example)
    return [n for n in found if not isinstance(teacher.get_submodule(n), CONVOLUTIONS)]


def evenly_chosen(blocks: Sequence[str]) -> list[list[str]]:
    """Blocks to leave out together, spread evenly over the network: few of them, then more."""
    counts = sorted({round(len(blocks) * share) for share in SHARES} - {0})
    total = len(blocks)
    return [[blocks[(2 * n + 1) * total // (2 * count)] for n in range(count)] for count in counts]


def without(architecture: Mapping[str, Any], dropped: Sequence[str]) -> dict[str, Any]:
    """An architecture of family `shrink` without some residual blocks."""
    made = {**architecture, "dropped": [*dropped]}
    for part in ("modules", "parameters", "attributes"):
        if part in made:
            made[part] = {n: v for n, v in made[part].items() if not is_gone(n, dropped)}
    return made
