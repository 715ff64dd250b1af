"""Adapters that start where they fit: least squares from the student's maps to the teacher's."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

SAMPLES = 16384
RIDGE = 1e-3


@torch.no_grad()
def fit_adapter(adapter: nn.Linear, student: Tensor, teacher: Tensor) -> None:
    """Set an adapter to the ridge regression from the student's pixels to the teacher's.

    An adapter from random weights spends the first steps on finding the student's channels in the
    teacher's, and its gradient moves the student meanwhile.

    Args:
        adapter: C_s to C_t.
        student: map [N, C_s, H, W].
        teacher: map [N, C_t, H, W].
    """
    x, y = (_pixels(student), _pixels(teacher))
    one = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
    gram = one.T @ one
    mean = gram.diagonal()[:-1].mean()
    if not torch.isfinite(gram).all() or not torch.isfinite(y).all() or mean <= 0:
        return  # nothing to fit to: the adapter keeps its random start
    strength = torch.full_like(gram.diagonal(), float(RIDGE * mean))
    strength[-1] = 0.0  # the bias is not shrunk
    solution = torch.linalg.lstsq(gram + strength.diag(), one.T @ y).solution
    adapter.weight.copy_(solution[:-1].T)
    adapter.bias.copy_(solution[-1])


def fit_adapters(
    adapters: Iterable[nn.Module], students: Iterable[Tensor], teachers: Iterable[Tensor]
) -> None:
    """`fit_adapter` for each that is an adapter, in order; what is none has nothing to fit."""
    for adapter, student, teacher in zip(adapters, students, teachers, strict=True):
        if isinstance(adapter, nn.Linear):
            fit_adapter(adapter, student, teacher)


def _pixels(maps: Tensor) -> Tensor:
    """At most SAMPLES pixels, evenly spread, float64 [P, C]."""
    flat = maps.detach().movedim(1, -1).reshape(-1, maps.shape[1])
    step = max(1, len(flat) // SAMPLES)
    return flat[::step].double()
