"""The weight of each loss term: fixed, ramped over a stage, or balanced by gradient norm."""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from kdcompile.config.distill import Distill, Ramp

BALANCE_EVERY = 100
LIMIT = 1e3  # a balanced factor lies between 1/LIMIT and LIMIT
REFERENCE = "hard"


def ramped(weight: float | Ramp, progress: float) -> float:
    """A weight at a share 0..1 of its stage."""
    if not isinstance(weight, Ramp):
        return weight
    done = progress if weight.curve == "linear" else 0.5 * (1 - math.cos(math.pi * progress))
    return weight.start + (weight.end - weight.start) * done


class TermWeights:
    """Weights on the device, changed in place, so that a captured graph reads the new ones.

    Under `balance = "gradient"` a term's weight is the share that the spec gives it (1 where it
    gives none) times |g_hard| / |g_term|, with g the gradient of the unweighted term with respect
    to the student's parameters (the idea of GradNorm, Chen et al., ICML 2018, in closed form).
    It is measured at the start of a stage and every `BALANCE_EVERY` steps; each new factor is the
    geometric mean of the measured one and the one before.

    value: float32 [terms], in the order of `names`.
    """

    def __init__(
        self,
        names: Sequence[str],
        weights: Mapping[str, float | Ramp],
        options: Distill,
        device: torch.device,
    ) -> None:
        self.names = tuple(names)
        self.is_balanced = options.balance == "gradient"
        self._weights = {name: self._share(name, weights, options) for name in names}
        self._factors = torch.ones(len(names), dtype=torch.float64)
        self.value = torch.zeros(len(names), device=device)
        self._shown: list[float] = []

    def _share(
        self, name: str, weights: Mapping[str, float | Ramp], options: Distill
    ) -> float | Ramp:
        if not self.is_balanced or name in options.weights or weights[name] == 0:
            return weights[name]
        return 1.0

    def set(self, step: int, total: int) -> None:
        """The weights of a step of `total`; nothing is sent to the device when none changed."""
        progress = step / max(1, total - 1)
        factors = self._factors.tolist()
        now = [
            ramped(self._weights[n], progress) * f for n, f in zip(self.names, factors, strict=True)
        ]
        if now != self._shown:
            self._shown = now
            host = torch.tensor(now, dtype=torch.float32)
            if self.value.is_cuda:
                host = host.pin_memory()
            self.value.copy_(host, non_blocking=True)

    def is_due(self, step: int) -> bool:
        """Whether the gradients are to be measured before this step of the stage."""
        return self.is_balanced and step % BALANCE_EVERY == 0

    def balance(self, norms: Sequence[float], first: bool) -> None:
        """Take new gradient norms, one a term; a term without gradient keeps its factor."""
        known = dict(zip(self.names, norms, strict=True))
        reference = known.get(REFERENCE, max(norms))
        for place, norm in enumerate(norms):
            if norm > 0 and reference > 0 and math.isfinite(norm) and math.isfinite(reference):
                factor = min(LIMIT, max(1 / LIMIT, reference / norm))
                before = factor if first else float(self._factors[place])
                self._factors[place] = math.sqrt(before * factor)

    def shown(self) -> dict[str, float]:
        """The weights in use, by term."""
        return dict(zip(self.names, self._shown, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {"factors": self._factors.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state_dict` gave."""
        self._factors.copy_(state["factors"])


def gradient_norms(
    terms: Sequence[Tensor],
    parameters: Sequence[Tensor],
    mean: Callable[[Tensor], Tensor],
) -> list[float]:
    """The norm of each term's gradient with respect to the parameters.

    Args:
        terms: float32 scalars of one forward pass.
        parameters: the student's.
        mean: averages a vector over processes.
    """
    norms = []
    for term in terms:
        if not term.requires_grad:
            norms.append(0.0)
            continue
        grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        flat = [g.flatten().float() for g in grads if g is not None]
        norms.append(float(mean(torch.cat(flat)).norm()) if flat else 0.0)
    return norms
