"""The position of an image in a network's input, and the part of an output map that it covers.

The one definition of what a dense output says of the photo: everything that counts or draws a map
asks it. The bundle's samples and the build kit stand alone and repeat it in a few lines;
tests/bundle/test_padding.py holds all of them against each other.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Frame:
    """Where a photo lies in a network's input; [height, width] in pixels each.

    Args:
        photo: of the photo itself, in which its points are given.
        seen: of the photo as the network saw it, scaled to fit.
        plane: of the input: the photo from the top left corner, padded right and below.
    """

    photo: tuple[int, int]
    seen: tuple[int, int]
    plane: tuple[int, int]

    def inside(self, height: int, width: int) -> NDArray[np.float32]:
        """The share of each cell that lies in the photo, float32 [height, width].

        1 within it, 0 in the padding. A cell across the border counts by its area: nothing tells
        which of its pixels the network saw the content in.

        Args:
            height: cells of a map that covers the whole input.
            width: cells of that map.
        """
        rows, columns = (
            np.clip(seen * cells / plane - np.arange(cells), 0.0, 1.0)
            for cells, seen, plane in zip((height, width), self.seen, self.plane, strict=True)
        )
        return np.outer(rows, columns).astype(np.float32)
