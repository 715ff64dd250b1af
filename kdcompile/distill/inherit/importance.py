"""Importance of the channels of a group, measured on crops by what the layers behind read.

`activation`: the channels' covariance and the weights that read them; `select.explaining` picks the
channels from which the rest can be predicted as far as the next layers need it. `taylor`: the
change of the loss, to first order, when a channel is set to zero: |sum a dL/da|.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdcompile.distill.inherit.rows import grouped_weight, sample
from kdcompile.models.channel_groups import Channels
from kdcompile.models.examples import Inputs, inputs_of
from kdcompile.models.resize import NORMS

POSITIONS = 4096  # an image
Loss = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group: `size` channels of its input from `offset`, `each` long.

    They are on the input's `dim`: the last of a linear layer.
    """

    layer: str
    group: int
    offset: int
    size: int
    each: int
    dim: int = 1

    def part(self, x: Tensor) -> Tensor:
        """The group's share of the layer's input [B, C, *space], as [B, size, places]."""
        x = x.movedim(self.dim, 1)
        share = x[:, self.offset : self.offset + self.size * self.each]
        return share.reshape(len(x), self.size, -1)


@dataclass(frozen=True)
class Place:
    """One reader's view of a group: covariance [C, C] and `demand` [C, C], W W^T of its weights."""

    covariance: Tensor
    demand: Tensor


def readers(channels: Channels, wanted: set[int]) -> list[Reader]:
    """Who reads the wanted groups; depthwise and normalising layers only pass channels on."""
    found = []
    for name, layer in channels.layers.items():
        passes_on = issubclass(layer.kind, (*NORMS, nn.MultiheadAttention, nn.Embedding))
        if passes_on or layer.is_depthwise:
            continue
        offset = 0
        for group, size, each in layer.inputs:
            root = channels.root(group)
            if root in wanted:
                dim = -1 if issubclass(layer.kind, (nn.Linear, nn.RNNBase)) else 1
                found.append(Reader(name, root, offset, size, each, dim))
            offset += size * each
    return found


def places(
    teacher: nn.Module, crops: Sequence[Inputs], found: Sequence[Reader]
) -> dict[int, list[Place]]:
    """The readers' views by group. Runs the teacher once over the crops."""
    moments: dict[Reader, list[Tensor]] = {}

    def look(reader: Reader, x: Tensor) -> None:
        values = reader.part(x).transpose(0, 1).flatten(1)  # [C, B * places]
        picks = sample(values.shape[1], POSITIONS * len(x), len(moments)).to(values.device)
        values = values[:, picks].double()
        count = values.new_tensor(float(len(picks)))
        new = [count, values.sum(1), values @ values.T]
        old = moments.get(reader)
        moments[reader] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

    with torch.no_grad(), watched(teacher, found, look):
        for batch in crops:
            teacher(*inputs_of(batch))
    views: dict[int, list[Place]] = {}
    for reader, (count, total, squares) in moments.items():
        mean = total / count
        covariance = (squares / count - torch.outer(mean, mean)).cpu()
        demand = _demand(teacher.get_submodule(reader.layer), reader).cpu()
        views.setdefault(reader.group, []).append(Place(covariance, demand))
    return views


def _demand(module: nn.Module, reader: Reader) -> Tensor:
    """Inner products of the weights that read two channels; 0 between channels of two groups."""
    weight = grouped_weight(module).double()  # [G, O/G, I/G, K]
    rows = weight.transpose(1, 2).flatten(2)  # [G, I/G, O/G * K]
    end = reader.offset + reader.size * reader.each
    if len(rows) == 1:
        share = rows[0, reader.offset : end].reshape(reader.size, -1)
        return share @ share.T
    blocks: Tensor = torch.block_diag(*(rows @ rows.transpose(1, 2)))  # type: ignore[no-untyped-call]
    return blocks[reader.offset : end, reader.offset : end]


def taylor(
    teacher: nn.Module, crops: Sequence[Inputs], found: Sequence[Reader], loss: Loss
) -> dict[int, Tensor]:
    """Scores [C] by group: |sum over places of a dL/da|, summed over readers and images."""
    scores: dict[int, Tensor] = {}
    if not found:
        return scores
    seen: list[tuple[Reader, Tensor]] = []

    def look(reader: Reader, x: Tensor) -> None:
        seen.append((reader, x))

    with torch.enable_grad(), watched(teacher, found, look):
        for number, batch in enumerate(crops):
            seen.clear()
            given = [t.clone() for t in inputs_of(batch)]
            for tensor in given:
                tensor.requires_grad_(tensor.is_floating_point())
            value = loss(teacher(*given), number)
            inputs = [x for _, x in seen]
            gradients = torch.autograd.grad(value, inputs, allow_unused=True)
            for (reader, x), gradient in zip(seen, gradients, strict=True):
                if gradient is not None:
                    change = reader.part((x * gradient).detach()).sum(2).abs().double().sum(0)
                    scores[reader.group] = scores.get(reader.group, 0) + change.cpu()
    return scores


@contextmanager
def watched(
    teacher: nn.Module, found: Sequence[Reader], look: Callable[[Reader, Tensor], None]
) -> Iterator[None]:
    """Call `look(reader, input)` whenever a reader runs."""

    def hook(reader: Reader, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        look(reader, inputs[0])

    with ExitStack() as hooks:
        for reader in found:
            module = teacher.get_submodule(reader.layer)
            hooks.enter_context(module.register_forward_pre_hook(partial(hook, reader)))
        yield


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
