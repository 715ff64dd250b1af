"""Selection of the channels of a group that the student keeps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdcompile.distill.inherit.importance import Place


def most(scores: Tensor, keep: int, blocks: int) -> Tensor:
    """The `keep` channels with the highest scores, equally many of each block, ascending."""
    by_block = scores.reshape(blocks, -1).argsort(dim=1, descending=True, stable=True)
    width = by_block.shape[1]
    chosen = by_block[:, : keep // blocks] + width * torch.arange(blocks)[:, None]
    return chosen.flatten().sort().values


def explaining(views: Sequence[Place], size: int, keep: int, blocks: int) -> Tensor:
    """The channels that `ranking` picks, as ascending indices [keep]."""
    return torch.tensor(sorted(ranking(views, size, keep, blocks)))


def ranking(views: Sequence[Place], size: int, keep: int, blocks: int) -> list[int]:
    """Channels, picked one by one, that best predict what the readers make of all of them.

    With covariance S and demand H = W W^T of a reader, channel c explains r^T H r / S_cc of the
    reader's input, where r is column c of S; S then loses what c explains (a pivoted Cholesky
    factorisation whose pivots are chosen by H). Readers count equally.

    Args:
        views: the group's readers.
        size: channels of the group.
        keep: how many to pick.
        blocks: equally many are picked of each of so many equal parts.

    Returns:
        Indices in the order in which they are picked.
    """
    residuals, products, floors = [], [], []
    for view in views:
        energy = (view.demand * view.covariance).sum().clamp(min=torch.finfo(torch.double).tiny)
        residuals.append(view.covariance.clone())
        products.append(view.demand @ view.covariance / energy)
        floors.append(view.covariance.diagonal().max().clamp(min=0) * 1e-9)
    open_ = torch.ones(size, dtype=torch.bool)
    block = torch.arange(size) // (size // blocks)
    room = torch.full((blocks,), keep // blocks)
    chosen: list[int] = []
    for _ in range(keep):
        gain = torch.zeros(size, dtype=torch.double)
        for residual, product, floor in zip(residuals, products, floors, strict=True):
            left = residual.diagonal()
            explained = (residual * product).sum(0) / left.clamp(min=1e-300)
            gain += torch.where(left > floor, explained, 0)
        best = int(gain.masked_fill(~open_, -1).argmax())
        chosen.append(best)
        room[block[best]] -= 1
        open_[best] = False
        open_ &= room[block] > 0
        for residual, product, floor in zip(residuals, products, floors, strict=True):
            if residual[best, best] > floor:
                column = residual[:, best] / residual[best, best].sqrt()
                weighted = product[:, best] / residual[best, best].sqrt()
                residual -= torch.outer(column, column)
                product -= torch.outer(weighted, column)
    return chosen
