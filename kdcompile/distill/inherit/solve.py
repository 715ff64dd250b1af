"""A layer's weights by regression, with the teacher's own weights as the prior.

Minimises mean_n |x_n W + b - y_n|^2 + ridge |W - W0|^2. Where a ReLU alone reads the result, an
output that the teacher has below the threshold need only stay below it: its error counts where
it is above. That loss is convex too, and the same factorisation is its preconditioner.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # relative to the mean square of an input
HELD_OUT = 8  # one row in so many is held out
CHUNK = 4096
GATED_STEPS = 12
CONSTANT = 1.0  # the relative error of each output's mean


@dataclass(frozen=True)
class Gate:
    """A ReLU of sign * (y - threshold), per output [G, 1, O/G]; sign 0 lets the output pass."""

    sign: Tensor
    threshold: Tensor

    def __call__(self, y: Tensor) -> Tensor:
        """What the layers behind see of an output, up to its scale."""
        above = self.sign * (y - self.threshold)
        return torch.where(self.sign == 0, y, above.clamp(min=0))

    def clamped(self, y: Tensor) -> Tensor:
        """The outputs themselves, those below the threshold at it."""
        above = self.threshold + self.sign * self(y)
        return torch.where(self.sign == 0, y, above)

    def target(self, y: Tensor, predicted: Tensor) -> Tensor:
        """The value nearest to the prediction that is as good as y behind the gate."""
        below = self.sign * (predicted - self.threshold) < 0
        slack = torch.where(below, predicted, self.threshold.expand_as(predicted))
        return torch.where((self.sign == 0) | (self.sign * (y - self.threshold) > 0), y, slack)


@dataclass(frozen=True)
class Solution:
    """Weight [G, D, O/G] and bias [G, 1, O/G], in float64."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The outputs for some rows, float32 [G, N, O/G]."""
        return x @ self.weight.float() + self.bias.float()

    def error(self, x: Tensor, y: Tensor, gate: Gate | None) -> float:
        """Root of the squared error over the outputs' variance; 0 for a constant that is met."""
        found = self(x)
        if gate is not None:
            found, y = gate(found), gate(y)
        return relative_error(found, y)


def relative_error(found: Tensor, y: Tensor) -> float:
    """Root of the squared error over the variance of each output [G, N, O/G] over its rows."""
    wrong = (found - y).double().square().sum()
    spread = (y - y.mean(1, keepdim=True)).double().square().sum()
    return float((wrong / spread.clamp(min=torch.finfo(torch.float32).tiny)).sqrt())


_Test = tuple[Tensor, Tensor, Gate | None]  # held-out rows, their outputs, the gate


@dataclass(frozen=True)
class _System:
    """The rows and their second moments about the mean (about zero without an intercept)."""

    x: Tensor  # [G, N, D]
    mean: Tensor  # [G, 1, D]
    gram: Tensor  # [G, D, D]
    intercept: bool

    @classmethod
    def of(cls, x: Tensor, intercept: bool) -> "_System":
        mean = x.mean(1, keepdim=True, dtype=torch.double) * float(intercept)
        gram = torch.zeros(len(x), x.shape[2], x.shape[2], dtype=torch.double, device=x.device)
        for part in torch.split(x, CHUNK, 1):
            centred = _centred(part, mean, _is_short(x))
            gram += centred.transpose(1, 2) @ centred
        return cls(x, mean, gram / x.shape[1], intercept)

    def factor(self, ridge: float) -> Tensor | None:
        """Cholesky's factor with the ridge added; None where it is singular all the same."""
        size = self.gram.shape[-1]
        strength = ridge * self.gram.diagonal(dim1=1, dim2=2).mean(1)
        loaded = self.gram + strength[:, None, None] * torch.eye(size, device=self.gram.device)
        factor, info = torch.linalg.cholesky_ex(loaded)
        return None if bool(info.any()) else factor

    def against(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the rows with a residual [G, N, O/G], and the residual's mean."""
        mean = residual.mean(1, keepdim=True, dtype=torch.double) * float(self.intercept)
        pairs = zip(torch.split(self.x, CHUNK, 1), torch.split(residual, CHUNK, 1), strict=True)
        exact = _is_short(self.x)
        parts = [
            _centred(x, self.mean, exact).transpose(1, 2) @ _centred(r, mean, exact)
            for x, r in pairs
        ]
        return torch.stack(parts).sum(0, dtype=torch.double) / self.x.shape[1], mean


def _is_short(x: Tensor) -> bool:
    """Whether there are fewer rows than inputs: rounding along what none sees is only ridged."""
    return x.shape[1] < x.shape[2]


def _centred(rows: Tensor, mean: Tensor, exact: bool) -> Tensor:
    """Rows for a product: float64 on a GPU, where float32 might mean TF32, and if `exact`."""
    return rows.double() - mean if exact or rows.is_cuda else rows - mean.float()


@dataclass(frozen=True)
class _Found:
    """A solution, its error on held-out rows, and its ridge: factor and strength, if it has one."""

    solution: Solution
    error: float
    factor: Tensor | None = None
    strength: float = 0.0


def fit(
    x: Tensor, y: Tensor, prior: Tensor, intercept: bool, gate: Gate | None
) -> tuple[Solution, float]:
    """Solve one layer; the ridge is the one with the least error on held-out rows.

    Where few rows are above a ReLU's threshold, every fit to what lies below it may be dead: at 0
    for each row, and for ever, since no gradient passes. What is no better than a constant is
    tried again from a fit to the clamped outputs, which is above the threshold in the mean.

    Args:
        x: float32 [G, N, D].
        y: float32 [G, N, O/G].
        prior: float32 [G, D, O/G], kept where the rows say nothing.
        intercept: whether the outputs may be shifted.
        gate: the ReLU that alone reads the output.

    Returns:
        The solution and its relative error on the held-out rows, behind the gate.
    """
    held = max(1, x.shape[1] // HELD_OUT)
    rows, targets = x[:, : max(1, x.shape[1] - held)], y[:, : max(1, x.shape[1] - held)]
    test: _Test = (x[:, -held:], y[:, -held:], gate)
    if gate is not None and not _varies(gate(test[1])):
        test = (x, y, gate)  # none of them is above the threshold: they cannot tell
    system = _System.of(rows, intercept)
    best = _ridged(system, targets, prior, test)
    if gate is not None:
        best = _refined(system, targets, gate, best, prior, test)
        if best.error >= CONSTANT or is_dead(best.solution, x, y, gate):
            other = _ridged(system, gate.clamped(targets), prior, test)
            further = _refined(system, targets, gate, other, prior, test)
            best = min(
                (best, other, further),
                key=lambda found: (is_dead(found.solution, x, y, gate), found.error),
            )
    return best.solution, best.error


def is_dead(solution: Solution, x: Tensor, y: Tensor, gate: Gate) -> bool:
    """Whether no output varies behind the gate, where those to be met do."""
    return _varies(gate(y)) and not _varies(gate(solution(x)))


def _varies(y: Tensor) -> bool:
    return bool((y != y[:, :1]).any())


def _ridged(system: _System, y: Tensor, prior: Tensor, test: _Test) -> _Found:
    """The ungated solution of the best ridge, or the prior where none is better."""
    moments, mean = system.against(y - system.x @ prior)
    start = prior.double()
    kept = Solution(start, mean)
    best = _Found(kept, kept.error(*test))
    for ridge in RIDGES:
        factor = system.factor(ridge)
        if factor is None:
            continue
        change = torch.cholesky_solve(moments, factor)
        found = Solution(start + change, mean - system.mean @ change)
        error = found.error(*test)
        if error < best.error:
            best = _Found(found, error, factor, ridge)
    return best


def _refined(
    system: _System, y: Tensor, gate: Gate, found: _Found, prior: Tensor, test: _Test
) -> _Found:
    """The gated solution from an ungated one; the prior is left as it is."""
    if found.factor is None:
        return found
    ridge = (prior.double(), found.factor, found.strength)
    solution = _gated(system, y, gate, found.solution, ridge)
    return _Found(solution, solution.error(*test), found.factor, found.strength)


def _gated(
    system: _System,
    y: Tensor,
    gate: Gate,
    first: Solution,
    ridge: tuple[Tensor, Tensor, float],
) -> Solution:
    """Accelerated proximal steps from the ungated solution."""
    prior, factor, strength = ridge
    pull = strength * system.gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    here = ahead = first
    momentum = 1.0
    for _ in range(GATED_STEPS):
        predicted = ahead(system.x)
        moments, mean = system.against(gate.target(y, predicted) - predicted)
        change = torch.cholesky_solve(moments - pull * (ahead.weight - prior), factor)
        there = Solution(ahead.weight + change, ahead.bias + mean - system.mean @ change)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        speed = (momentum - 1) / following
        ahead = Solution(
            there.weight + speed * (there.weight - here.weight),
            there.bias + speed * (there.bias - here.bias),
        )
        here, momentum = there, following
    return here
