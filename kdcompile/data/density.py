"""Density maps whose sum is exactly the number of points."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def density_maps(
    points: Tensor, mask: Tensor, size: tuple[int, int], stride: int, sigma: float
) -> Tensor:
    """One Gaussian per point, cut off at the border and scaled back to mass 1.

    A Gaussian on a rectangle is the product of two one-dimensional ones, so normalising each
    (a softmax over the cells) keeps the mass of every point at exactly 1, at the borders too.

    Args:
        points: float [B, P, 2], x and y in pixels.
        mask: bool [B, P], False for padding.
        size: height and width of the map in cells.
        stride: pixels per cell.
        sigma: deviation of the Gaussian in cells.

    Returns:
        float32 [B, 1, h, w]; the sum of map b is the number of True in `mask[b]`.
    """
    cells = points.float() / stride
    weights = []
    for axis, length in ((1, size[0]), (0, size[1])):
        centres = torch.arange(length, device=points.device) + 0.5
        away = (centres - cells[..., axis : axis + 1]) / sigma
        weights.append(torch.softmax(-0.5 * away.square(), dim=-1))
    rows = weights[0] * mask.unsqueeze(-1)
    with _whole_float32(points.device):
        return torch.einsum("bph,bpw->bhw", rows, weights[1]).unsqueeze(1)


@contextmanager
def _whole_float32(device: torch.device) -> Iterator[None]:
    """Neither TF32 nor autocast: they would cost the points' mass its last digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
