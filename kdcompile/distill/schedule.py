"""Schedule of a training: its stages and steps, the learning rate, and the weight of each term."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdcompile.config.distill import Distill, Ramp

DEFAULT_EPOCHS = 100
TIMED_STEPS = 5
ONE_STAGE = "distill"
BALANCE_EVERY = 100
LIMIT = 1e3  # a balanced factor lies between 1/LIMIT and LIMIT
REFERENCE = "hard"


@dataclass(frozen=True)
class StagePlan:
    """A stage: its options merged over those of `[distill]`, and how long it is.

    Exactly one of `steps` and `share` (of the whole length) is given.
    """

    name: str
    options: Distill
    blocks: bool = False
    steps: int | None = None
    share: float | None = None


def stage_plans(options: Distill) -> list[StagePlan]:
    """The stages in order; one that is the whole training where the spec names none."""
    shared = options.model_copy(update={"stages": []})
    if not options.stages:
        return [StagePlan(ONE_STAGE, shared, share=1.0)]
    plans = []
    for stage in options.stages:
        own = {"name", "share", "steps", "blocks"}
        changed = {n: getattr(stage, n) for n in type(stage).model_fields if n not in own}
        merged = shared.model_copy(update={n: v for n, v in changed.items() if v is not None})
        plans.append(StagePlan(stage.name, merged, stage.blocks, stage.steps, stage.share))
    return plans


def stage_steps(
    plans: Sequence[StagePlan],
    options: Distill,
    n_train: int,
    world: int,
    seconds: Callable[[StagePlan], float],
) -> list[int]:
    """Steps of each stage from `steps`, `epochs` or `minutes`.

    Args:
        plans: the stages.
        options: `[distill]`, which has the whole length.
        n_train: training images.
        world: processes, each with a batch of its own.
        seconds: times a step of a stage; asked for `minutes` alone. The result must be kept:
            timing again would give another number.
    """
    found = []
    for plan in plans:
        if plan.steps is not None:
            found.append(plan.steps)
            continue
        assert plan.share is not None, "the schema gives each stage a length"
        if options.steps is not None:
            least = min(1, options.steps)
            found.append(max(least, round(plan.share * options.steps)))
        elif options.minutes is None:
            epochs = options.epochs if options.epochs is not None else DEFAULT_EPOCHS
            images = plan.share * epochs * n_train
            found.append(max(1, math.ceil(images / (plan.options.batch * world))))
        else:
            found.append(max(1, int(plan.share * options.minutes * 60 / seconds(plan))))
    return found


def seconds_per_step(timed_step: Callable[[], None]) -> float:
    """The mean of a few steps after one that warms up."""
    timed_step()
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        timed_step()
    return (time.perf_counter() - start) / TIMED_STEPS


def learning_rate(step: int, total: int, options: Distill) -> float:
    """Linear warm-up over a share of a stage's steps, then a cosine to zero (Loshchilov, 2017)."""
    warm = math.ceil(options.warmup * total)
    if step < warm:
        return options.lr * (step + 1) / warm
    return options.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def evaluation_steps(total: int, evaluations: int) -> set[int]:
    """The numbers of finished steps after which the student is validated; the last is one."""
    return {max(1, round(total * n / evaluations)) for n in range(1, evaluations + 1)}


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
