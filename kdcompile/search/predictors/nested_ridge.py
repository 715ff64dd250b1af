"""How well a layer is rebuilt from its first k inputs, for all k at once.

A layer's outputs Y are regressed on input patches X with the teacher's weights W0 as the prior:
W_k = (G_kk + r I)^-1 (X_k^T Y + r W0_k), where G = X^T X. With the inputs in a fixed order, the
Cholesky factor of G_kk is the leading block of that of G. So one factorisation G + r I = L L^T, the
coordinates Z = L^-1 (X^T Y + r W0) and held-out patches in the same coordinates, T = X' L^-T, give
every prediction as a partial sum: X'_k W_k = sum_{i < k} T_i Z_i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcompile.distill.inherit.solve import CHUNK, HELD_OUT, Gate

RIDGE = 1e-3  # relative to the mean square of an input


@dataclass(frozen=True)
class Nested:
    """Held-out squared errors, float64 [steps, G, O/G], and the outputs' own spread [G, O/G]."""

    wrong: Tensor
    spread: Tensor


def nested(
    x: Tensor,
    y: Tensor,
    prior: Tensor,
    steps: Sequence[int],
    gate: Gate | None,
    solved: bool = True,
) -> Nested:
    """Errors behind the gate, on the last eighth of the rows.

    Args:
        x: float32 [G, N, D], the inputs in the order in which they are kept.
        y: float32 [G, N, O/G].
        prior: float32 [G, D, O/G], the teacher's weights.
        steps: ascending numbers of leading columns of x.
        gate: the ReLU that alone reads the output; it is not accounted for in the regression.
        solved: false for a layer whose weights are only sliced.
    """
    held = max(1, x.shape[1] // HELD_OUT)
    rows, known = x[:, :-held], y[:, :-held]
    middle = rows.mean(1, keepdim=True, dtype=torch.double)
    level = known.mean(1, keepdim=True, dtype=torch.double)
    test = x[:, -held:].double() - middle
    start = prior.double()
    if solved:
        factor, start = _coordinates(rows, known, prior, (middle, level))
        test = torch.linalg.solve_triangular(factor, test.mT, upper=False).mT
    target = y[:, -held:]
    target = gate(target) if gate is not None else target
    spread = (target.double() - target.mean(1, keepdim=True, dtype=torch.double)).square().sum(1)
    found, done, wrong = level.expand(-1, held, -1).clone(), 0, []
    for step in steps:
        found += test[:, :, done:step] @ start[:, done:step]
        done = step
        seen = found.float() if gate is None else gate(found.float())
        wrong.append((seen - target).double().square().sum(1))
    return Nested(torch.stack(wrong).cpu(), spread.cpu())


def _coordinates(
    x: Tensor, y: Tensor, prior: Tensor, means: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """L [G, D, D] and Z [G, D, O/G], in float64."""
    size, count = x.shape[2], x.shape[1]
    gram = torch.zeros(len(x), size, size, dtype=torch.double, device=x.device)
    moments = torch.zeros(len(x), size, y.shape[2], dtype=torch.double, device=x.device)
    for a, b in zip(torch.split(x, CHUNK, 1), torch.split(y, CHUNK, 1), strict=True):
        left, right = (part - mean for part, mean in zip((a, b), means, strict=True))
        if not x.is_cuda:  # there float32 might mean TF32
            left, right = left.float(), right.float()
        gram += left.mT @ left
        moments += left.mT @ right
    strength = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] / count
    strength = strength.clamp(min=torch.finfo(torch.float32).tiny)
    loaded = gram / count + strength * torch.eye(size, dtype=torch.double, device=x.device)
    factor = torch.linalg.cholesky(loaded)
    right = moments / count + strength * prior.double()
    return factor, torch.linalg.solve_triangular(factor, right, upper=False)
