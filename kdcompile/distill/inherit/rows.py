"""The linear system that a layer solves: input patches and outputs at sampled positions."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kdcompile.distill.inherit.layer_norm import norm_axis
from kdcompile.distill.inherit.plan import TRANSPOSED
from kdcompile.models.resize import LAST_NORMS


def groups(module: nn.Module) -> int:
    """Groups of a convolution; 1 for a linear layer."""
    return int(getattr(module, "groups", 1))


def sample(total: int, count: int, seed: int) -> Tensor:
    """At most `count` distinct positions of `total`; always the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:count]


def grouped_weight(module: nn.Module) -> Tensor:
    """The weight as [G, O/G, I/G, K], where K runs over the kernel's taps; a view or a copy."""
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
        space: the output's height and width, or its length, or nothing.

    Returns:
        [G, n, I/G * K], the order of `grouped_weight`.
    """
    if isinstance(module, (nn.Linear, *LAST_NORMS)):
        return output_rows(x, picks, is_last(module)).unsqueeze(0)
    image, place = _divided(picks, torch.Size(space).numel())
    planar = x if x.ndim == 4 else x.unsqueeze(2)
    row, column = _divided(place, space[-1])
    gather = _transposed_patches if isinstance(module, TRANSPOSED) else _patches
    taps = gather(module, planar, image, (row, column))  # [n, kh, kw, I]
    flat = taps.flatten(1, 2).transpose(1, 2)  # [n, I, K]
    return flat.reshape(len(picks), groups(module), -1).transpose(0, 1)


def _divided(index: Tensor, by: int) -> tuple[Tensor, Tensor]:
    return index.div(by, rounding_mode="floor"), index % by


def _pairs(module: nn.Module, name: str) -> list[int]:
    """A per-axis setting for two axes; that of a 1-d convolution is its second axis."""
    values = [int(v) for v in getattr(module, name)]
    return values if len(values) == 2 else [0 if name == "padding" else 1, *values]


def _patches(module: nn.Module, x: Tensor, image: Tensor, place: tuple[Tensor, Tensor]) -> Tensor:
    kernel, stride, dilation = (_pairs(module, n) for n in ("kernel_size", "stride", "dilation"))
    mode = str(module.padding_mode)
    margin = list(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]
    if mode == "zeros":
        x = pad(x, margin)
    elif x.shape[2] == 1 and len(margin) == 2:
        x = pad(x.squeeze(2), margin, mode=mode).unsqueeze(2)
    else:
        x = pad(x, margin, mode=mode)
    at = [
        (p[:, None] * s + torch.arange(k, device=x.device) * d)
        for p, s, k, d in zip(place, stride, kernel, dilation, strict=True)
    ]
    return x.permute(0, 2, 3, 1)[image[:, None, None], at[0][:, :, None], at[1][:, None, :]]


def _transposed_patches(
    module: nn.Module, x: Tensor, image: Tensor, place: tuple[Tensor, Tensor]
) -> Tensor:
    """An output reads input (o + padding - k * dilation) / stride where that is a whole number."""
    settings = zip(
        place,
        x.shape[2:],
        *(_pairs(module, n) for n in ("kernel_size", "stride", "dilation", "padding")),
        strict=True,
    )
    at, inside = [], []
    for p, extent, kernel, stride, dilation, padding in settings:
        scaled = p[:, None] + padding - torch.arange(kernel, device=x.device) * dilation
        source, rest = _divided(scaled, stride)
        inside.append((rest == 0) & (source >= 0) & (source < extent))
        at.append(source.clamp(0, extent - 1))
    found = x.permute(0, 2, 3, 1)[image[:, None, None], at[0][:, :, None], at[1][:, None, :]]
    made: Tensor = found * (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(-1)
    return made
