"""Layer and RMS norms: scale and shift by regression, where only some channels are left.

A layer norm divides by the spread of all channels, so what it makes of the kept ones changes when
others go. Channel by channel the scale and shift that give the teacher's output best are those of
a regression on the student's normalised input.
"""

import torch
from torch import Tensor, nn

from kdcompile.distill.inherit.solve import HELD_OUT, relative_error
from kdcompile.models.resize import changes_forward, plain_kind


def norm_axis(module: nn.LayerNorm | nn.RMSNorm) -> int | None:
    """The axis that a norm of one axis is over: -1, or 1 of images; None where it is neither.

    A subclass with a forward of its own is tried on random values, past its hooks. Some only
    choose another precision, some take images [N, C, H, W], some do more than a norm does.
    """
    if not changes_forward(module):
        return -1
    kind = plain_kind(module)
    assert kind is not None, "only norms are asked for"
    device = next((p.device for p in module.parameters()), None)
    size = (2, 3, 5, *module.normalized_shape)
    x = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.no_grad():
        expected = kind.forward(module, x)
        for axis in (-1, 1):
            try:
                found = module.forward(x.movedim(-1, axis)).movedim(axis, -1)
            except (RuntimeError, TypeError, ValueError):
                continue
            if found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5):
                return axis
    return None


def _applied(module: nn.Module, rows: Tensor) -> Tensor:
    """What the module makes of rows [n, C], whichever axis it is over."""
    if norm_axis(module) == 1:  # type: ignore[arg-type]
        return module(rows[:, :, None, None])[:, :, 0, 0]  # type: ignore[no-any-return]
    return module(rows)  # type: ignore[no-any-return]


def rescale(module: nn.LayerNorm | nn.RMSNorm, x: Tensor, y: Tensor) -> float:
    """Set the scale, and the shift of a norm that has one, in place.

    Args:
        module: the student's.
        x: its inputs at some positions [1, n, C].
        y: the teacher's outputs there [1, n, C].

    Returns:
        The relative error on held-out rows.
    """
    weight, bias = module.weight, getattr(module, "bias", None)
    if weight is None:
        weight, bias = torch.ones(x.shape[-1]), None
    with torch.no_grad():
        shift = 0.0 if bias is None else bias
        plain = (_applied(module, x[0]) - shift).double() / _nonzero(weight.double())
        wanted = y[0].double()
        held = max(1, len(plain) // HELD_OUT)
        rows, targets = plain[:-held], wanted[:-held]
        means = (rows.mean(0), targets.mean(0)) if bias is not None else (0.0, 0.0)
        centred = rows - means[0]
        energy = centred.square().sum(0)
        scale = (centred * (targets - means[1])).sum(0) / _nonzero(energy)
        scale = torch.where((energy > 0) & (weight != 0), scale, weight.double())
        if module.weight is not None:
            module.weight.copy_(scale)
            if bias is not None:
                bias.copy_(means[1] - scale * means[0])
        return relative_error(_applied(module, x[0])[None, -held:], y[:, -held:])


def _nonzero(value: Tensor) -> Tensor:
    return torch.where(value == 0, 1, value)
