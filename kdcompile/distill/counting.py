"""The counting task: the scales of its loss, and its metrics."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

BLOCK = 8  # cells a side of a block whose count is compared


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
