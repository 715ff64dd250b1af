"""Views of modules' outputs as maps [N, C, H, W], from which the outputs can be made again.

Networks of different families keep their features in different forms: maps with channels first
(convolutions) or last (Swin, ConvNeXt), and tokens [N, T, C] with or without class tokens before
those of the image's patches. Recipes compare maps of one size. So class tokens are left out, the
other tokens are laid out in their grid, and of two grids the finer one is averaged to the coarser.
What a class token knows is in the teacher's output, which recipes compare too.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int]  # height and width


@dataclass(frozen=True)
class View:
    """The form of a module's output, and the size at which it is compared.

    Args:
        is_last: channels are the last of four axes, as in [N, H, W, C].
        lead: tokens before those of the grid.
        grid: height and width in which the other tokens lie; None for maps, and for tokens that are
            compared one by one, as a map of T x 1.
        size: what the map is averaged to; None for its own size.
    """

    is_last: bool = False
    lead: int = 0
    grid: Size | None = None
    size: Size | None = None

    def maps(self, output: Tensor) -> Tensor:
        """The map [N, C, H, W] of an output."""
        found = self._own(output)
        if self.size is None or found.shape[2:] == self.size:
            return found
        pooled: Tensor = functional.adaptive_avg_pool2d(found, self.size)
        return pooled

    def output(self, maps: Tensor, output: Tensor) -> Tensor:
        """A map in the form of the output that `maps` made it of.

        Leading tokens are those of that output; a map that was averaged is interpolated.
        """
        own = self._own(output).shape[2:]
        if maps.shape[2:] != own:
            maps = functional.interpolate(maps, own, mode="bilinear", align_corners=False)
        if output.ndim == 3:
            tokens = maps.flatten(2).transpose(1, 2)
            return torch.cat([output[:, : self.lead].to(tokens), tokens], 1)
        return maps.movedim(1, -1) if self.is_last else maps

    def at(self, size: Size) -> "View":
        """The same, averaged to another size."""
        return replace(self, size=size)

    @property
    def whole(self) -> "View":
        """The same in the map's own size."""
        return replace(self, size=None)

    def _own(self, output: Tensor) -> Tensor:
        """The map in its own size."""
        if output.ndim == 3:
            columns = output[:, self.lead :].transpose(1, 2)
            return (
                columns.unsqueeze(3)
                if self.grid is None
                else columns.reshape(*columns.shape[:2], *self.grid)
            )
        return output.movedim(-1, 1) if self.is_last else output


PLAIN = View()
