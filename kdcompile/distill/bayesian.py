r"""Bayesian loss of counting (Ma et al., ICCV 2019, arXiv 1908.03684), with its background.

A cell m belongs to point n, or to the background 0, with the probability

    p(n | m) = e_n(m) / sum_k e_k(m),   e_n = exp(-|m - y_n|^2 / 2 s^2),
                                        e_0 = exp(-(d - min_n |m - y_n|)^2 / 2 s^2)

and the loss of a crop with counts S is sum_n |1 - sum_m p(n | m) S(m)| + |sum_m p(0 | m) S(m)|.
Where the people of a cell may stand is left to the network: it need not learn a Gaussian.
"""

import torch
from torch import Tensor

from kdcompile.data.point_labels import Points
from kdcompile.distill.point_objective import PointObjective

BACKGROUND = 0.15  # d in shorter sides of the photo, as published
FAR = 1e8  # squared cells: no point is near
LEAST = -50.0  # logarithm of the least share: a CPU takes long for numbers near its least one


class BayesianObjective(PointObjective):
    """`hard` is the Bayesian loss, with s of data.sigma and d 15 % of the photo's shorter side."""

    formula = (
        "hard: sum over points |1 - expected count| + |expected count of the background|"
        " + soft |S - T|^2"
    )

    def losses(self, density: Tensor, points: Points) -> Tensor:
        """The loss of each crop, one after the other: what one needs may fit into a cache."""
        found = []
        for one, places, shown, reach, sigma in zip(density, *points[:4], strict=True):
            if not places.is_cuda:  # there nothing waits for a value
                places, shown = places[shown], shown[shown]
            parts, every = memberships(
                places, shown, one.shape, BACKGROUND * reach, sigma, one.dtype
            )
            counts = (one.flatten() / every) @ parts
            found.append(((1 - counts[:-1]).abs() * shown).sum() + counts[-1].abs())
        return torch.stack(found)


@torch.no_grad()
def memberships(
    places: Tensor,
    shown: Tensor,
    size: tuple[int, ...],
    distance: Tensor,
    sigma: Tensor,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """How probably each cell belongs to each point and, last, to the background, and the sum.

    Args:
        places: x and y in cells, float [P, 2].
        shown: bool [P]; nothing belongs to the others.
        size: height and width of the map.
        distance: of the background from the nearest point, in cells.
        sigma: deviation of a point's Gaussian in cells.
        dtype: in which to compute.

    Returns:
        [h * w, P + 1] and the sum [h * w] to divide it by; to divide a density takes less time.
    """
    x, y = places.to(dtype).unbind(1)
    rows, columns = (
        (torch.arange(length, device=places.device, dtype=dtype) + 0.5).unsqueeze(1) - place
        for length, place in zip(size, (y, x), strict=True)
    )
    away = rows.new_empty(*size, len(places) + 1)
    torch.add(rows.square().unsqueeze(1), columns.square(), out=away[..., :-1])
    away[..., :-1].masked_fill_(~shown, FAR)
    away[..., -1] = FAR
    nearest = away.amin(2).sqrt_()
    away[..., -1] = (distance - nearest).square_()
    logs = away.mul_(-0.5 / sigma.to(dtype).square())
    logs -= logs.amax(2, keepdim=True)
    parts = logs.clamp_min_(LEAST).exp_().flatten(0, 1)
    return parts, parts.sum(1)
