"""Selection of the channels of a group that stay: what reads it is predicted best from them.

What a reader sees is kept as covariances, or, where there are fewer samples than channels, as the
samples themselves, which are then the smaller: 64 samples of 4,096 channels are 2 MB and not 128.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LEAST = 1e-9  # of the largest variance: what is below is rounding


class View(Protocol):
    """What a reader sees of a group."""

    def pursuit(self) -> "Pursuit":
        """Its part in picking channels."""


class Pursuit(Protocol):
    """What the picked channels leave of a view."""

    def left(self) -> Tensor:
        """The variance of each channel [C] that the picked ones do not predict."""

    def explained(self) -> Tensor:
        """What each channel [C] would explain of the reader's input, times what is left of it."""

    def take(self, channel: int) -> None:
        """Take away what a channel predicts."""


@dataclass(frozen=True)
class Place:
    """One reader's view of a group: covariance [C, C] and `demand` [C, C], W W^T of its weights."""

    covariance: Tensor
    demand: Tensor

    def pursuit(self) -> "_OfCovariance":
        """Its part in picking channels."""
        energy = (self.demand * self.covariance).sum().clamp(min=torch.finfo(torch.double).tiny)
        return _OfCovariance(self.covariance.clone(), self.demand @ self.covariance / energy)


@dataclass(frozen=True)
class Samples:
    """The same of few samples: `values` [C, n], whose products are the covariance, and `demand`.

    The demand [n, n] is (W^T values)^T (W^T values).
    """

    values: Tensor
    demand: Tensor

    def pursuit(self) -> "_OfSamples":
        """Its part in picking channels."""
        energy = self.demand.diagonal().sum().clamp(min=torch.finfo(torch.double).tiny)
        demand = self.demand / energy
        return _OfSamples(self.values.clone(), self.values @ demand, demand)


@dataclass
class _OfCovariance:
    residual: Tensor
    product: Tensor  # of demand and residual

    def left(self) -> Tensor:
        return self.residual.diagonal()

    def explained(self) -> Tensor:
        return (self.residual * self.product).sum(0)

    def take(self, channel: int) -> None:
        root = self.residual[channel, channel].sqrt()
        column, weighted = self.residual[:, channel] / root, self.product[:, channel] / root
        self.residual -= torch.outer(column, column)
        self.product -= torch.outer(weighted, column)


@dataclass
class _OfSamples:
    values: Tensor  # each take projects the samples' space
    product: Tensor  # of values and demand
    demand: Tensor

    def left(self) -> Tensor:
        return self.values.square().sum(1)

    def explained(self) -> Tensor:
        return (self.values * self.product).sum(1)

    def take(self, channel: int) -> None:
        along = self.values[channel] / self.values[channel].norm()
        column = self.values @ along
        self.values -= torch.outer(column, along)
        self.product -= torch.outer(column, along @ self.demand)


def most(scores: Tensor, keep: int, blocks: int) -> Tensor:
    """The `keep` channels with the highest scores, equally many of each block, ascending."""
    by_block = scores.reshape(blocks, -1).argsort(dim=1, descending=True, stable=True)
    width = by_block.shape[1]
    chosen = by_block[:, : keep // blocks] + width * torch.arange(blocks)[:, None]
    return chosen.flatten().sort().values


def explaining(views: Sequence[View], size: int, keep: int, blocks: int) -> Tensor:
    """The channels that `ranking` picks, as ascending indices [keep]."""
    return torch.tensor(sorted(ranking(views, size, keep, blocks)))


def ranking(views: Sequence[View], size: int, keep: int, blocks: int) -> list[int]:
    """Channels, picked one by one, that best predict what the readers make of all of them.

    With covariance S and demand H = W W^T of a reader, channel c explains r^T H r / S_cc of the
    reader's input, where r is column c of S; S then loses what c explains (a pivoted Cholesky
    factorisation whose pivots are chosen by H). Readers count equally. Where nothing is left to
    explain, the first channels fill the rest.

    Args:
        views: of the group's readers.
        size: channels of the group.
        keep: how many to pick.
        blocks: equally many are picked of each of so many equal parts.

    Returns:
        Indices in the order in which they are picked.
    """
    pursuits = [view.pursuit() for view in views]
    floors = [float(pursuit.left().max().clamp(min=0)) * LEAST for pursuit in pursuits]
    open_ = torch.ones(size, dtype=torch.bool)
    block = torch.arange(size) // (size // blocks)
    room = torch.full((blocks,), keep // blocks)
    chosen: list[int] = []
    pairs = list(zip(pursuits, floors, strict=True))
    for _ in range(keep):
        pairs = [(one, floor) for one, floor in pairs if float(one.left().max()) > floor]
        gain = torch.zeros(size, dtype=torch.double)
        for pursuit, floor in pairs:
            left = pursuit.left()
            explained = pursuit.explained() / left.clamp(min=1e-300)
            gain += torch.where(left > floor, explained, 0)
        best = int(gain.masked_fill(~open_, -1).argmax())
        chosen.append(best)
        room[block[best]] -= 1
        open_[best] = False
        open_ &= room[block] > 0
        for pursuit, floor in pairs:
            if float(pursuit.left()[best]) > floor:
                pursuit.take(best)
    return chosen
