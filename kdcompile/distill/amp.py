"""The precision that losses are computed in."""

import torch
from torch import Tensor


def promoted(x: Tensor) -> Tensor:
    """At least float32: float64 stays as it is."""
    return x if x.dtype == torch.float64 else x.float()
