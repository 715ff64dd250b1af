r"""Distribution matching for counting (DM-Count; Wang et al., NeurIPS 2020, arXiv 2009.13077).

With N points and counts S of sum n, a = S / n and b the points' share of each cell,

    loss = |n - N| + 0.1 W(a, b) + 0.01 N |a - b| / 2

W is the cost of moving a to b, in squared eighths of a cell as published at stride 8, and the last
term N times the total variation. Points are shared among the four cells whose centres are nearest,
which keeps their mean place, so that both distributions lie on one grid; cells below 0 have no
part in a. The published loss takes the points one by one, and a W without the entropy's marginals.
"""

import torch
from torch import Tensor

from kdcompile.data.point_labels import Points
from kdcompile.data.targets import whole_float32
from kdcompile.distill.point_objective import PointObjective
from kdcompile.distill.transport import transport

MOVED, VARIED = 0.1, 0.01
EIGHTHS = 64  # squared eighths of a cell


class MatchingObjective(PointObjective):
    """`hard` is the loss of DM-Count."""

    formula = "hard |n(S) - n(Y)| + 0.1 W(S, Y) + 0.01 n(Y) TV(S, Y) + soft |S - T|^2"

    def losses(self, density: Tensor, points: Points) -> Tensor:
        """The loss of each crop."""
        size = (density.shape[1], density.shape[2])
        return matching(density, spread(points.places, points.shown, size).to(density.dtype))


def matching(density: Tensor, target: Tensor) -> Tensor:
    """The loss of each crop, [N], in counts.

    Args:
        density: count of each cell [N, h, w], with a gradient.
        target: what is there, the same shape; nothing below 0.
    """
    wanted = target.sum((1, 2))
    own, theirs = distribution(density), distribution(target)
    moved = EIGHTHS * transport(own, theirs)
    varied = wanted * (own - theirs).abs().sum((1, 2)) / 2
    gap = (density.sum((1, 2)) - wanted).abs()
    return gap + (wanted > 0) * (MOVED * moved + VARIED * varied)


def distribution(density: Tensor) -> Tensor:
    """Each map [N, h, w] as shares of its sum; values below 0 are none, and nothing is uniform."""
    mass = density.clamp_min(0)
    total = mass.sum((1, 2), keepdim=True)
    is_there = total > 1e-6
    uniform = torch.full_like(mass, 1 / mass[0].numel())
    return torch.where(is_there, mass / torch.where(is_there, total, 1), uniform)


@torch.no_grad()
def spread(places: Tensor, shown: Tensor, size: tuple[int, int]) -> Tensor:
    """The points in each cell, each shared bilinearly among four; [N, h, w], of sum `shown`.

    Args:
        places: x and y in cells, float [N, P, 2].
        shown: bool [N, P].
        size: height and width of the map.
    """
    weights = []
    for axis, length in ((1, size[0]), (0, size[1])):
        centres = torch.arange(length, device=places.device, dtype=places.dtype) + 0.5
        held = places[..., axis, None].clamp(0.5, length - 0.5)
        weights.append((1 - (held - centres).abs()).clamp_min(0))
    with whole_float32(places.device):
        return torch.einsum("bph,bpw->bhw", weights[0] * shown.unsqueeze(2), weights[1])
