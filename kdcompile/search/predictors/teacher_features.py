"""A teacher's feature maps at its cuts: recorded, resized, and weighted by their effect."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.distill.inherit.rows import sample
from kdcompile.models.cuts import Cut

POSITIONS = 1024  # of an image, for second moments and regressions
AT_ONCE = 4


@torch.no_grad()
def teacher_maps(
    teacher: nn.Module, names: Sequence[str], images: Tensor
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """A few images at a time, with the outputs of the named modules, in the order of the names.

    The teacher is not run beyond the last name, which must come last in it.
    """
    for batch in torch.split(images, AT_ONCE):
        maps: dict[str, Tensor] = {}

        def record(name: str, output: Tensor, maps: dict[str, Tensor] = maps) -> None:
            maps[name] = output.clone()  # what follows may work in place
            if name == names[-1]:
                raise _Enough

        with suppress(_Enough), hooked(teacher, names, record):
            teacher(batch)
        yield batch, [maps[name] for name in names]


class _Enough(Exception):  # noqa: N818 - no error, the way out of a forward pass
    """The last map that was requested for is there."""


def at_size(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps at another height and width: averaged over whole cells, else bilinear (antialiased)."""
    height, width = int(size[0]), int(size[1])
    have = (int(maps.shape[2]), int(maps.shape[3]))
    if have == (height, width):
        return maps
    if have[0] % height == 0 and have[1] % width == 0:
        return functional.adaptive_avg_pool2d(maps, (height, width))
    shrinks = height < have[0] or width < have[1]
    return functional.interpolate(
        maps, (height, width), mode="bilinear", align_corners=False, antialias=shrinks
    )


def at_next_cut(cuts: Sequence[Cut], index: int, maps: Tensor) -> Tensor:
    """A cut's maps at the resolution of the next cut, where that is coarser.

    What a stage pools away before it computes, no student needs to have.
    """
    if index + 1 == len(cuts):
        return maps
    ratio = cuts[index + 1].stride // cuts[index].stride
    return at_size(maps, [-(-side // ratio) for side in maps.shape[2:]]) if ratio > 1 else maps


def rows_of(maps: Tensor, seed: int) -> Tensor:
    """Some positions of maps [B, C, h, w] as rows [n, C]; the same for equal B, h, w and seed."""
    flat = maps.permute(0, 2, 3, 1).flatten(0, 2)
    return flat[sample(len(flat), POSITIONS * len(maps), seed).to(maps.device)]


def weighted_error(difference: Tensor, demand: Tensor) -> Tensor:
    """d^T H d of an image's positions, summed, float64 [N]."""
    flat = difference.flatten(2)
    return torch.einsum("ncp,cd,ndp->n", flat, demand, flat).double()


def nested_order(covariance: Tensor, demand: Tensor) -> Tensor:
    """All channels in an order whose every beginning is picked greedily.

    The next channel is the one from which the most of what is left of all channels can be
    predicted, as far as the output reads it: a pivoted Cholesky factorisation with pivots by
    r^T H r / R_cc, r the channel's column of the residual covariance R (the rule of
    `kdcompile.distill.inherit.importance`). Channels that are explained already follow by index.

    Args:
        covariance: [C, C], float64.
        demand: H, [C, C].

    Returns:
        Indices [C].
    """
    residual, wanted = covariance.double().cpu().clone(), demand.double().cpu()
    floor = float(residual.diagonal().max()) * 1e-9
    order: list[int] = []
    while len(order) < len(residual):
        left = residual.diagonal()
        explained = (residual * (wanted @ residual)).sum(0)
        gain = torch.where(left > floor, explained / left.clamp(min=1e-300), -1.0)
        gain[order] = -1.0
        best = int(gain.argmax())
        if float(gain[best]) < 0:
            break
        order.append(best)
        column = residual[:, best] / residual[best, best].sqrt()
        residual = residual - torch.outer(column, column)
    return torch.tensor(order + [c for c in range(len(residual)) if c not in set(order)])


def output_demands(
    teacher: nn.Module, names: Sequence[str], images: Tensor, seed: int
) -> list[Tensor]:
    """What the output makes of each channel and each pair, at the named modules' outputs.

    H = mean over positions of g g^T, where g is the gradient of a random combination (+1 and -1)
    of all output values with respect to a position's channels: to first order and with positions
    taken as independent, e^T H e is the square of the output's change by an error e there.

    Returns:
        [C, C] each, float64, scaled to trace C; the unit matrix where the output reads nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    for part in torch.split(images, AT_ONCE):
        maps: dict[str, Tensor] = {}

        def record(name: str, output: Tensor, maps: dict[str, Tensor] = maps) -> Tensor:
            maps[name] = output
            output.retain_grad()
            return output * 1.0  # what follows may work in place

        with torch.enable_grad(), hooked(teacher, names, record):
            output = teacher(part.detach().clone().requires_grad_())
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2.0 - 1.0
            (output * signs.to(output)).sum().backward()
        for name in names:
            gradient = maps[name].grad
            assert gradient is not None, "a cut leads to the output"
            flat = gradient.transpose(0, 1).flatten(1).double()
            sums[name] = sums.get(name, torch.zeros((), device=flat.device)) + flat @ flat.T
    teacher.zero_grad(set_to_none=True)
    made = []
    for name in names:
        size, trace = len(sums[name]), float(sums[name].diagonal().sum())
        unit = torch.eye(size, dtype=torch.double)
        made.append(sums[name].cpu() * (size / trace) if trace > 0 else unit)
    return made


@contextmanager
def hooked(
    module: nn.Module, names: Sequence[str], record: Callable[[str, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call `record(name, output)` for each named module; a result replaces the output."""
    hooks = [
        module.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: record(name, output)
        )
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
