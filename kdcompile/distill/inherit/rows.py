"""The linear system that a layer solves: input patches and outputs at sampled positions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kdcompile.distill.inherit.layer_norm import norm_axis
from kdcompile.models.resize import LAST_NORMS, TRANSPOSED


def groups(module: nn.Module) -> int:
    """Groups of a convolution; 1 for a linear layer."""
    return int(getattr(module, "groups", 1))


def sample(total: int, count: int, seed: int) -> Tensor:
    """At most `count` distinct positions of `total`; always the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count]


def grouped_weight(module: nn.Module) -> Tensor:
    """The weight as [G, O/G, I/G, K], where K runs over the kernel's taps; a view or a copy."""
    if isinstance(module, nn.RNNBase):  # what reads its input
        first = [p.detach() for n, p in module.named_parameters() if n.startswith("weight_ih_l0")]
        return torch.cat(first)[None, :, :, None]
    weight: Tensor = module.weight.detach()  # type: ignore[operator]
    if isinstance(module, nn.Linear):
        return weight[None, :, :, None]
    split = weight.reshape(groups(module), -1, *weight.shape[1:]).flatten(3)
    return split.transpose(1, 2) if isinstance(module, TRANSPOSED) else split


def set_weight(module: nn.Module, weight: Tensor) -> None:
    """Set the weight from [G, O/G, I/G, K]."""
    own: Tensor = module.weight.data  # type: ignore[assignment]
    ordered = weight.transpose(1, 2) if isinstance(module, TRANSPOSED) else weight
    own.copy_(ordered.reshape(own.shape))


def is_last(module: nn.Module) -> bool:
    """Whether a layer's channels are the last axis, as a linear layer's, and not the second."""
    return isinstance(module, nn.Linear) or (
        isinstance(module, LAST_NORMS) and norm_axis(module) != 1
    )


def output_rows(output: Tensor, picks: Tensor, linear: bool) -> Tensor:
    """The outputs at some positions, [n, O].

    Args:
        output: [B, O, *space], or [..., O] of a linear layer.
        picks: positions within [B, *space], or within [...].
        linear: which of the two.
    """
    if linear:
        return output.reshape(-1, output.shape[-1])[picks]
    image, place = _divided(picks, output.shape[2:].numel())
    return output.flatten(2)[image, :, place]


def input_rows(module: nn.Module, x: Tensor, picks: Tensor, space: Sequence[int]) -> Tensor:
    """The inputs that a layer's outputs at some positions are linear in.

    Args:
        module: a convolution, transposed convolution, linear layer or norm of the last axis.
        x: its input.
        picks: positions, as in `output_rows`.
        space: the output's sizes behind its channels; nothing of a linear layer.

    Returns:
        [G, n, I/G * K], the order of `grouped_weight`.
    """
    if isinstance(module, (nn.Linear, *LAST_NORMS)):
        return output_rows(x, picks, is_last(module)).unsqueeze(0)
    image, place = _divided(picks, torch.Size(space).numel())
    places: list[Tensor] = []  # along each axis
    for size in reversed(space):
        place, rest = _divided(place, size)
        places.insert(0, rest)
    gather = _transposed_patches if isinstance(module, TRANSPOSED) else _patches
    taps = gather(module, x, image, places)  # [n, *kernel, I]
    flat = taps.flatten(1, -2).transpose(1, 2)  # [n, I, K]
    return flat.reshape(len(picks), groups(module), -1).transpose(0, 1)


def _divided(index: Tensor, by: int) -> tuple[Tensor, Tensor]:
    return index.div(by, rounding_mode="floor"), index % by


def _settings(module: nn.Module, *names: str) -> list[Sequence[int]]:
    """Settings of a convolution that have a number for each axis."""
    return [getattr(module, name) for name in names]


def _taps(x: Tensor, image: Tensor, at: Sequence[Tensor]) -> Tensor:
    """The channels [n, *kernel, I] at positions [n, k] along each axis of some images [n]."""
    spread = [_spread(one, axis, len(at)) for axis, one in enumerate(at)]
    index = [image.reshape(-1, *[1] * len(at)), *spread]
    return x.movedim(1, -1)[tuple(index)]


def _spread(at: Tensor, axis: int, axes: int) -> Tensor:
    """Positions [n, k] along an axis, as [n, 1, k, 1] for the second of three."""
    shape = [len(at), *[1] * axes]
    shape[1 + axis] = at.shape[1]
    return at.reshape(shape)


def _patches(module: nn.Module, x: Tensor, image: Tensor, places: Sequence[Tensor]) -> Tensor:
    mode = str(module.padding_mode)
    margin = list(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]
    x = pad(x, margin, mode="constant" if mode == "zeros" else mode)
    settings = _settings(module, "stride", "kernel_size", "dilation")
    at = [
        p[:, None] * s + torch.arange(k, device=x.device) * d
        for p, s, k, d in zip(places, *settings, strict=True)
    ]
    return _taps(x, image, at)


def _transposed_patches(
    module: nn.Module, x: Tensor, image: Tensor, places: Sequence[Tensor]
) -> Tensor:
    """An output reads input (o + padding - k * dilation) / stride where that is a whole number."""
    settings = _settings(module, "kernel_size", "stride", "dilation", "padding")
    at, inside = [], torch.ones((), dtype=torch.bool, device=x.device)
    for axis, (p, extent) in enumerate(zip(places, x.shape[2:], strict=True)):
        kernel, stride, dilation, padding = (setting[axis] for setting in settings)
        scaled = p[:, None] + padding - torch.arange(kernel, device=x.device) * dilation
        source, rest = _divided(scaled, stride)
        valid = (rest == 0) & (source >= 0) & (source < extent)
        inside = inside & _spread(valid, axis, len(places))
        at.append(source.clamp(0, extent - 1))
    return _taps(x, image, at) * inside.unsqueeze(-1)
