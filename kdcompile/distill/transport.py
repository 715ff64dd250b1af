r"""Optimal transport between two distributions on one grid, by Sinkhorn in the log domain.

The cost of moving mass is its squared way in cells, and

    W(a, b) = min_P <C, P> + eps KL(P | a x b) = max_{f, g} <f, a> + <g, b>,

    f(m) = -eps log sum_n b(n) exp((g(n) - C(m, n)) / eps),  g likewise.

A squared way is the sum of those along the axes, so that a sum over all cells is one over columns
and then one over rows, each a product with a matrix of one axis. In float64 none of these loses
what it sums, as long as exp(-side^2 / eps) is no 0: eps ends at side^2 / 700, or at a squared cell,
for a grid says no more. Published is 0.16. On a map of 32 cells a side what costs least still keeps
two people apart who are 1 to 4 cells apart; on one of 64, where eps is 5.7, it draws those 3 apart
together, so that smaller crops serve better. eps begins at the square of the grid's diagonal and
falls to that; there the iterations are over-relaxed (Thibault et al., 2017, arXiv 1711.01851). The
gradient of W to a is f (the envelope theorem): nothing is differentiated through iterations.
"""

import torch
from torch import Tensor

EPS = 1.0  # squared cells, at least
RANGE = 700.0  # float64 has exp(-700)
FALL = 0.5  # of eps from one iteration to the next
BEYOND = 1.7  # over-relaxation at the last eps: some 50 iterations do what takes 500 without
ITERATIONS = 100  # as published


def transport(a: Tensor, b: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """W of each pair of distributions, float64 [N], in squared cells.

    Args:
        a: [N, h, w] of sum 1, not negative; gradients flow to it.
        b: the same; none flow to it.
        iterations: of both potentials.
    """
    own, other = a.double(), b.detach().double()
    f, g = potentials(own.detach(), other, iterations)
    return (f * own + g * other).sum((1, 2))


@torch.no_grad()
def potentials(a: Tensor, b: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """f and g of `transport`, float64 [N, h, w]; f is that of g, also where a is 0."""
    height, width = a.shape[1:]
    last = max(EPS, (max(height, width) - 1) ** 2 / RANGE)
    log_a, log_b, f = a.log(), b.log(), torch.zeros_like(a)
    g, eps = f, float(height**2 + width**2)
    for left in range(iterations, 0, -1):
        eps = max(eps * FALL, last)
        kernels = [_kernel(length, eps, a) for length in (height, width)]
        beyond = BEYOND if eps == last and left > 1 else 1.0
        g = torch.lerp(g, -eps * _log_sums(log_a + f / eps, kernels), beyond)
        f = torch.lerp(f, -eps * _log_sums(log_b + g / eps, kernels), beyond)
    return f, g


def _log_sums(values: Tensor, kernels: list[Tensor]) -> Tensor:
    """log sum_n exp(values(n)) K(m, n), [N, h, w], along one axis after the other."""
    rows, columns = kernels
    return _log_products(_log_products(values, columns).mT, rows).mT


def _log_products(values: Tensor, kernel: Tensor) -> Tensor:
    """The logarithm of exp(values) times a symmetric kernel of the last axis."""
    most = values.amax(2, keepdim=True).clamp_min(-1e300)  # of a row without mass it is -inf
    return ((values - most).exp() @ kernel).log() + most


def _kernel(length: int, eps: float, like: Tensor) -> Tensor:
    """exp(-C / eps) of an axis, [length, length]."""
    places = torch.arange(length, device=like.device, dtype=like.dtype)
    return ((places.unsqueeze(1) - places).square() / -eps).exp()
