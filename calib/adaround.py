"""Learnt rounding of one layer's weights: up or down, whichever keeps its outputs.

Each weight is floor(w / s) + h(V), with the rectified sigmoid
h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1); V minimises the squared error of the layer's
outputs, behind its ReLU where it has one, plus lambda (1 - |2 h - 1|^beta), whose beta falls so
that h ends at 0 or 1 (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training
Quantization", equations 21 to 25).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kdcompile.calib.table import INT8_MAX

ZETA, GAMMA = 1.1, -0.1


@dataclass(frozen=True)
class Settings:
    """How rounding is learnt.

    `regulariser` is lambda, for a mean over the weights and an error in units of what rounding to
    nearest adds, so that it means the same for every layer.
    """

    steps: int = 400
    batch: int = 256
    lr: float = 2e-2
    regulariser: float = 10.0
    warm_up: float = 0.2  # share of the steps without the regulariser
    beta: tuple[float, float] = (20.0, 2.0)
    seed: int = 0


@dataclass(frozen=True)
class Problem:
    """A layer as a product of matrices, group by group.

    Args:
        weight: [groups, outputs, inputs] in units of the scale, so that codes are near it.
        scale: [groups, outputs, 1].
        bias: [groups, 1, outputs].
        inputs: columns [groups, n, inputs] from the network whose earlier layers are quantised.
        targets: what the float32 network gives there, [groups, n, outputs].
        relu: whether a ReLU, and nothing else, reads the layer.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    inputs: Tensor
    targets: Tensor
    relu: bool

    def rows(self, which: Tensor) -> "Problem":
        """The problem on some of its columns."""
        return replace(self, inputs=self.inputs[:, which], targets=self.targets[:, which])

    def error(self, codes: Tensor) -> Tensor:
        """The mean squared error of the outputs with these codes."""
        found = torch.baddbmm(self.bias, self.inputs, (codes * self.scale).mT)
        wanted = self.targets
        if self.relu:
            found, wanted = found.relu(), wanted.relu()
        return (found - wanted).square().mean()

    def added(self, codes: Tensor) -> Tensor:
        """The mean square of what these codes change of the outputs, never zero."""
        change = torch.bmm(self.inputs, ((codes - self.weight) * self.scale).mT)
        return change.square().mean().clamp_min(torch.finfo(change.dtype).tiny)


def learn_rounding(problem: Problem, settings: Settings) -> Tensor:
    """Codes -127..127 [groups, outputs, inputs], each one of the two next to its weight.

    The largest weight of an output channel stays at +-127 and zeros stay zero, so that the codes
    have the scale and the sparsity of the weights. A channel below its scale's grid is dead.
    """
    weight = problem.weight
    floor = weight.floor()
    v = -torch.log((ZETA - GAMMA) / (weight - floor - GAMMA) - 1)  # h(v) is what floor cut off
    largest = weight.abs().amax(-1, keepdim=True)
    pinned = (weight.abs() == largest) | (weight == 0) | (largest < INT8_MAX - 1)
    nearest = weight.round()
    v.requires_grad_()
    optimiser = torch.optim.Adam([v], settings.lr)
    draw = torch.Generator().manual_seed(settings.seed)
    count = problem.inputs.shape[1]
    unit = problem.added(nearest)
    for step in range(settings.steps):
        batch = problem.rows(torch.randint(count, (settings.batch,), generator=draw))
        up = (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        loss = batch.error(torch.where(pinned, nearest, floor + up)) / unit
        beta = _beta(step / settings.steps, settings)
        if beta is not None:
            loss = loss + settings.regulariser * (1 - (2 * up - 1).abs().pow(beta)).mean()
        (v.grad,) = torch.autograd.grad(loss, v)
        optimiser.step()
    codes = torch.where(pinned, nearest, floor + (v.detach() >= 0))
    return codes.clamp(-INT8_MAX, INT8_MAX)


def _beta(done: float, settings: Settings) -> float | None:
    """The exponent at a share of the steps: none while warming up, then falling as a cosine."""
    if done < settings.warm_up:
        return None
    progress = (done - settings.warm_up) / (1 - settings.warm_up)
    start, end = settings.beta
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
