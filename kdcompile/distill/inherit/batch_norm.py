"""Batch norms: the statistics of what the student feeds them, and the ReLU seen through them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdcompile.distill.inherit.solve import Gate

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@dataclass
class Moments:
    """Sums over images and positions, by channel, in float64."""

    count: float = 0.0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Count a batch [B, C, *space]."""
        axes = [axis for axis in range(x.ndim) if axis != 1]
        self.count += x.numel() / x.shape[1]
        self.total = self.total + x.sum(axes, dtype=torch.double)
        self.squares = self.squares + x.double().square().sum(axes)

    def mean_var(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel."""
        mean = torch.as_tensor(self.total) / self.count
        return mean, (torch.as_tensor(self.squares) / self.count - mean.square()).clamp(min=0)


def absorbs(module: BatchNorm) -> bool:
    """Whether a batch norm can shift its input in inference mode."""
    return module.affine and module.track_running_stats


def gate_through(module: BatchNorm, outputs: Tensor) -> Gate:
    """The ReLU behind a batch norm, as a gate of the batch norm's input.

    Args:
        module: the teacher's.
        outputs: the channels that the gate is for, shaped as the gate [G, 1, O/G].
    """
    mean, deviation, scale, shift = (value[outputs] for value in _affine(module))
    dead = scale == 0
    threshold = mean - shift * deviation / scale.masked_fill(dead, 1)
    return Gate(scale.sign(), threshold.masked_fill(dead, 0))


def _affine(module: BatchNorm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, deviation, scale and shift."""
    assert module.running_mean is not None
    assert module.running_var is not None
    deviation = (module.running_var + module.eps).sqrt()
    return module.running_mean, deviation, module.weight.detach(), module.bias.detach()


def correct(module: BatchNorm, theirs: Moments, own: Moments, shift: Tensor | None) -> None:
    """Give a batch norm the statistics of what the student feeds it, and the same function.

    The running statistics move by as much as the crops' do from teacher to student; scale and
    shift make up for it, so that training mode and inference mode agree from the first step.

    Args:
        module: the student's, with the teacher's statistics of the kept channels.
        theirs: moments of the teacher's input on the crops, kept channels.
        own: moments of the student's input on the crops.
        shift: what the layer before would have as its bias if it had one.
    """
    assert module.running_mean is not None
    assert module.running_var is not None
    (mean_t, var_t), (mean_s, var_s) = theirs.mean_var(), own.mean_var()
    known = (var_t > 0) & (var_s > 0)
    ratio = torch.where(known, var_s / var_t.masked_fill(~known, 1), 1)
    move = mean_s - mean_t
    before, after = module.running_var.double(), module.running_var.double() * ratio
    if module.affine:
        deviation = (before + module.eps).sqrt()
        unmoved = move if shift is None else move + shift
        module.bias.data += (module.weight.data * unmoved / deviation).float()
        module.weight.data *= ((after + module.eps).sqrt() / deviation).float()
    module.running_mean += move.float()
    module.running_var.copy_(after)
