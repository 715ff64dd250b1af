"""Boxes of crops as training targets, moved, flipped and clipped on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kdcompile.data.photo import Photo
from kdcompile.data.targets import Extra, flipped_of, photos_of
from kdcompile.kernels.crop_augment import Column

VISIBLE = 0.3  # least share of a box in a crop that is still an object
OBJECT, ASIDE = 1.0, 2.0  # the last column of a target; 0 is no box


class BoxTargets:
    """The boxes of each crop, float32 [B, P, 6]: x0 y0 x1 y1 in its pixels, class, and what it is.

    The last column is `OBJECT`, `ASIDE` for what is neither to be found nor background (a crowd, a
    sliver at the border), and 0 for a row that is no box. P is the most that a photo has.

    Args:
        photos: with their boxes.
        device: where these lie from now on.
    """

    def __init__(self, photos: Sequence[Photo], device: torch.device) -> None:
        most = max([len(photo.boxes) for photo in photos] + [1])
        table = np.zeros((len(photos), most, 6), np.float32)
        for place, photo in enumerate(photos):
            given = photo.boxes
            crowd = given[:, 4] < 0
            table[place, : len(given), :4] = given[:, :4]
            table[place, : len(given), 4] = np.where(crowd, -1 - given[:, 4], given[:, 4])
            table[place, : len(given), 5] = np.where(crowd, ASIDE, OBJECT)
        self._boxes = torch.from_numpy(table).to(device)

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """The boxes of the crops in `table` [B, P]."""
        own = self._boxes.index_select(0, photos_of(table))
        x0, y0, x1, y1, kind, state = own.unbind(2)
        (x0, x1), seen_x = _moved((x0, x1), table, _X)
        (y0, y1), seen_y = _moved((y0, y1), table, _Y)
        flipped = flipped_of(table).unsqueeze(1)
        x0, x1 = torch.where(flipped, side - x1, x0), torch.where(flipped, side - x0, x1)
        share = seen_x * seen_y
        state = torch.where(share >= VISIBLE, state, ASIDE * (state > 0))
        state = torch.where(share > 0, state, torch.zeros_like(state))
        return torch.stack([x0, y0, x1, y1, kind, state], 2)


_X = (Extra.LEFT, Column.WINDOW_W, Column.WIDTH)
_Y = (Extra.TOP, Column.WINDOW_H, Column.HEIGHT)


def _moved(
    ends: tuple[Tensor, Tensor], table: Tensor, columns: tuple[int, ...]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Both ends [B, P] in the crop, clipped to what it shows, and the share that is shown."""
    start, window, size = (table[:, column].unsqueeze(1) for column in columns)
    low, high = ((end - start) * (size / window) for end in ends)
    clipped = torch.minimum(low.clamp_min(0), size), torch.minimum(high.clamp_min(0), size)
    return clipped, (clipped[1] - clipped[0]) / (high - low).clamp_min(1e-6)
