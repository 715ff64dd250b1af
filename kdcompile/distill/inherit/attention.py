"""Heads of attention in the basis in which their first channels say the most.

The size of a head shrinks by leaving channels out, the same of every head and of queries, keys and
values. Which they are is a matter of basis: a head's scores q k^T stay when queries are multiplied
by T and keys by the inverse of its transpose, its result when that is done to the values and to
what reads them. In the basis used here the kept channels give the scores of the least squared error
that so few can, and the values from which the next layer's input is predicted best.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from kdcompile.distill.inherit.reconstruct import input_at
from kdcompile.models.channel_groups import Channels, Layout
from kdcompile.models.examples import Inputs, inputs_of
from kdcompile.models.resize import changes_forward

EXACT = 1e-3  # of the output: a change of basis is only rounding
SMALLEST = 1e-4  # of the largest standard deviation of a head's channels


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values, in this order, from `makers`; `reader` takes the heads' results."""

    makers: tuple[str, ...]
    reader: str
    count: int
    kept: Tensor  # the channels of a head that the student has
    size: int

    def parts(self, network: nn.Module) -> list[tuple[nn.Linear, slice]]:
        """The layer and its rows for queries, keys and values."""
        layers = [network.get_submodule(name) for name in self.makers]
        width = sum(layer.out_features for layer in layers) // 3  # type: ignore[misc]
        each = 3 // len(layers)
        return [
            (layer, slice(i * width, (i + 1) * width))  # type: ignore[misc]
            for layer in layers
            for i in range(each)
        ]

    def rescale(self, teacher: nn.Module, student: nn.Module, crops: Sequence[Inputs]) -> None:
        """Scale the queries where the student's own code divides by the root of a smaller head.

        Which code does so is seen from what reaches the reader.
        """
        reached = _reached(teacher, self.reader, crops)
        wide = reached.reshape(*reached.shape[:-1], self.count, self.size)
        wanted = wide[..., self.kept.to(wide.device)].flatten(-2)
        layer, rows = self.parts(student)[0]
        tensors = [t for t in (layer.weight, layer.bias) if t is not None]
        plain = [t[rows].clone() for t in tensors]

        def error(by: float) -> float:
            with torch.no_grad():
                for tensor, values in zip(tensors, plain, strict=True):
                    tensor[rows] = values * by
            return float((_reached(student, self.reader, crops) - wanted).norm())

        error(min(1.0, math.sqrt(len(self.kept) / self.size), key=error))


def find_heads(channels: Channels, kept: Mapping[int, Tensor]) -> Iterator[Heads]:
    """Attention whose heads shrink, made by linear layers and read by one."""
    makers: list[str] = []
    for name, layer in channels.layers.items():
        if not issubclass(layer.kind, nn.Linear):
            continue
        root, count = _alike(channels, layer.inputs)
        if root in kept:
            for before in (makers[-1:], makers[-3:]):
                runs = [_alike(channels, channels.layers[n].outputs) for n in before]
                shared = len({channels.layers[n].inputs for n in before}) == 1
                if (
                    shared
                    and {r for r, _ in runs} == {root}
                    and sum(n for _, n in runs) == 3 * count
                ):
                    size = channels.size[root]
                    yield Heads(tuple(before), name, count, kept[root], size)
                    break
        makers.append(name)


def _alike(channels: Channels, layout: Layout) -> tuple[int, int]:
    """The root of a layout's runs and their number; -1 where they differ."""
    found = {(channels.root(group), each) for group, _, each in layout}
    root, each = next(iter(found))
    return (root, len(layout)) if len(found) == 1 and each == 1 else (-1, 0)


def turned(
    teacher: nn.Module, heads: Sequence[Heads], crops: Sequence[Inputs]
) -> tuple[nn.Module, list[Heads]]:
    """The teacher with its heads in that basis, and those of them that the basis was changed of.

    Attention between whose projections and products something else stands, such as a norm or a
    rotation by position, would give another output: it is left as it is.

    Args:
        teacher: in inference mode; left as it is.
        heads: of it.
        crops: input batches.
    """
    if not heads:
        return teacher, []
    network, done, called = copy.deepcopy(teacher), [], set[str]()
    names = {name for own in heads for name in (*own.makers, own.reader)}
    with torch.no_grad():
        with ExitStack() as hooks:
            for name in names:
                note = partial(lambda name, *_: called.add(name), name)
                hooks.enter_context(network.get_submodule(name).register_forward_hook(note))
            expected = network(*inputs_of(crops[0]))
        for own in heads:
            layers = [network.get_submodule(name) for name in (*own.makers, own.reader)]
            used = called.issuperset((*own.makers, own.reader))  # not their parameters alone
            if not used or any(changes_forward(layer) for layer in layers):
                continue
            before = copy.deepcopy([layer.state_dict() for layer in layers])
            _turn(network, own, crops)
            error = (network(*inputs_of(crops[0])) - expected).norm()
            if error <= EXACT * expected.norm():
                done.append(own)
                continue
            for layer, state in zip(layers, before, strict=True):
                layer.load_state_dict(state)
    return network, done


def _turn(network: nn.Module, own: Heads, crops: Sequence[Inputs]) -> None:
    """Change the basis of every head, in place."""
    (queries, of_queries), (keys, of_keys), (values, of_values) = own.parts(network)
    reader: nn.Linear = network.get_submodule(own.reader)  # type: ignore[assignment]
    read = _moments(_reached(network, own.makers[0], crops))
    a = _root(own, *_projected(read, queries, of_queries), centred=False)
    b = _root(own, *_projected(read, keys, of_keys), centred=True)  # a shift changes no softmax
    left, strength, right = torch.linalg.svd(a.transpose(1, 2) @ b)
    root = strength.clamp(min=torch.finfo(torch.double).tiny).sqrt()[..., None]
    turn_queries = root * torch.linalg.solve(a.transpose(1, 2), left).transpose(1, 2)
    turn_keys = root * torch.linalg.solve(b.transpose(1, 2), right.transpose(1, 2)).transpose(1, 2)
    c = _root(own, *_moments(_reached(network, own.reader, crops)), centred=True)
    weight = reader.weight.reshape(-1, own.count, own.size).movedim(1, 0).double()
    basis = torch.linalg.svd(weight @ c)[2].transpose(1, 2)
    back = c @ basis / c.square().sum((1, 2)).div(own.size).sqrt()[:, None, None]
    rest = torch.ones(own.size, dtype=torch.bool).index_fill(0, own.kept.cpu(), False)
    order = torch.cat([own.kept.cpu(), rest.nonzero().flatten()]).argsort().to(weight.device)
    for layer, rows, turn in (
        (queries, of_queries, turn_queries),
        (keys, of_keys, turn_keys),
        (values, of_values, torch.linalg.inv(back)),
    ):
        for tensor in (layer.weight, layer.bias):
            if tensor is not None:
                by_head = tensor[rows].double().reshape(own.count, own.size, -1)
                tensor[rows] = (turn @ by_head)[:, order].reshape(tensor[rows].shape).float()
    reader.weight.copy_((weight @ back)[:, :, order].movedim(0, 1).flatten(1))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and covariance [D, D] of what reaches a layer [..., D]."""
    rows = x.flatten(0, -2).double()
    mean = rows.mean(0)
    return mean, (rows - mean).T @ (rows - mean) / len(rows)


def _projected(read: tuple[Tensor, Tensor], layer: nn.Linear, rows: slice) -> tuple[Tensor, Tensor]:
    """Those of some of the layer's outputs."""
    weight = layer.weight[rows].double()
    mean = weight @ read[0] + (0 if layer.bias is None else layer.bias[rows].double())
    return mean, weight @ read[1] @ weight.T


def _root(own: Heads, mean: Tensor, covariance: Tensor, centred: bool) -> Tensor:
    """A matrix A for each head, A A^T its channels' second moments; none is singular."""
    heads = covariance.reshape(own.count, own.size, own.count, own.size)
    moments = heads.diagonal(dim1=0, dim2=2).movedim(-1, 0)
    if not centred:
        by_head = mean.reshape(own.count, own.size)
        moments = moments + by_head[:, :, None] * by_head[:, None, :]
    values, vectors = torch.linalg.eigh(moments)
    least = SMALLEST**2 * values.amax(1, keepdim=True) + torch.finfo(torch.double).tiny
    root: Tensor = vectors * values.clamp(min=least).sqrt()[:, None, :]
    return root


def _reached(network: nn.Module, name: str, crops: Sequence[Inputs]) -> Tensor:
    """What reaches a layer."""
    return torch.cat([input_at(network, name, batch) for batch in crops])
