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
from kdcompile.distill.inherit.select import Place, Samples, View
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


class _Seen:
    """What a reader was given so far: its samples, or their moments where they are as many."""

    def __init__(self, layer: nn.Module, reader: Reader) -> None:
        self._layer, self._reader = layer, reader
        self._count = 0
        self._samples: list[Tensor] = []
        self._moments: list[Tensor] = []
        self._is_few = len(grouped_weight(layer)) == 1

    def add(self, values: Tensor) -> None:
        """Some samples, float64 [C, n]."""
        self._count += values.shape[1]
        self._samples.append(values)
        if self._is_few and self._count < len(values):
            return
        self._is_few = False
        for part in self._samples:
            new = [part.sum(1), part @ part.T]
            old = self._moments
            self._moments = [a + b for a, b in zip(old, new, strict=True)] if old else new
        self._samples.clear()

    def view(self) -> View:
        """What it sees of the group."""
        if self._is_few:
            values = torch.cat(self._samples, 1)
            values = (values - values.mean(1, keepdim=True)) / self._count**0.5
            given = _rows(self._layer, self._reader).T @ values
            return Samples(values.cpu(), (given.T @ given).cpu())
        total, squares = self._moments
        mean = total / self._count
        covariance = (squares / self._count - torch.outer(mean, mean)).cpu()
        return Place(covariance, _demand(self._layer, self._reader).cpu())


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
) -> dict[int, list[View]]:
    """The readers' views by group. Runs the teacher once over the crops."""
    seen: dict[Reader, _Seen] = {}

    def look(reader: Reader, x: Tensor) -> None:
        values = reader.part(x).transpose(0, 1).flatten(1)  # [C, B * places]
        picks = sample(values.shape[1], POSITIONS * len(x), len(seen)).to(values.device)
        one = seen.setdefault(reader, _Seen(teacher.get_submodule(reader.layer), reader))
        one.add(values[:, picks].double())

    with torch.no_grad(), watched(teacher, found, look):
        for batch in crops:
            teacher(*inputs_of(batch))
    views: dict[int, list[View]] = {}
    for reader in list(seen):
        views.setdefault(reader.group, []).append(seen.pop(reader).view())
    return views


def _rows(module: nn.Module, reader: Reader) -> Tensor:
    """The weights of an ungrouped layer that read each channel of a group, float64 [C, ...]."""
    weight = grouped_weight(module)[0]  # [O, I, K]
    end = reader.offset + reader.size * reader.each
    share = weight[:, reader.offset : end].double()
    return share.transpose(0, 1).reshape(reader.size, -1)


def _demand(module: nn.Module, reader: Reader) -> Tensor:
    """Inner products of the weights that read two channels; 0 between channels of two groups."""
    weight = grouped_weight(module)  # [G, O/G, I/G, K]
    if len(weight) == 1:
        share = _rows(module, reader)
        return share @ share.T
    rows = weight.double().transpose(1, 2).flatten(2)  # [G, I/G, O/G * K]
    end = reader.offset + reader.size * reader.each
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
