"""The counting task: its supervised loss and its metrics."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

BLOCK = 8


def density_loss(predicted: Tensor, target: Tensor, reduction: str, scale: float) -> Tensor:
    """Squared error of a density map.

    Args:
        predicted: [N, 1, h, w].
        target: the same shape, labels or the teacher's map.
        reduction: "paper" is the sum over cells as released with SKT, "mean" the mean over cells
            divided by `scale`; both average over the batch.
        scale: mean squared density of the training labels, which makes the mean dimensionless.
    """
    error = (predicted.float() - target.float()).square()
    return error.flatten(1).sum(1).mean() if reduction == "paper" else error.mean() / scale


def block_loss(predicted: Tensor, target: Tensor, scale: float) -> Tensor:
    """Mean absolute error of the counts in blocks of 8x8 cells over `scale`, their mean count.

    Squared errors of single cells say little about a crowd's total; counts of blocks do.
    """
    difference = predicted.float() - target.float()
    pooled = avg_pool2d(difference, BLOCK, ceil_mode=True, divisor_override=1)
    return pooled.abs().mean() / scale


def label_scales(maps: Tensor) -> tuple[float, float]:
    """Mean squared density and mean block count of some label maps, at least tiny."""
    squared = float(maps.square().mean())
    return max(squared, 1e-8), max(float(maps.mean()) * BLOCK**2, 1e-6)


def mae_rmse(predicted: Sequence[float], true: Sequence[float]) -> tuple[float, float]:
    """Mean absolute error and root mean squared error of counts."""
    errors = np.subtract(predicted, true)
    return float(np.abs(errors).mean()), float(np.sqrt(np.square(errors).mean()))


def constant_mae(train: Sequence[float], judged: Sequence[float]) -> float:
    """MAE of the best constant of the training counts, their median."""
    return float(np.abs(np.asarray(judged) - np.median(train)).mean())


def counts(density: Tensor) -> Tensor:
    """People per image: the sum of each map."""
    return density.float().flatten(1).sum(1).to(torch.float64)
