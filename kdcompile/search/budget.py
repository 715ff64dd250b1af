"""The widest student that meets the budget on a target."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdcompile.config.spec import Budget
from kdcompile.core.errors import KDError
from kdcompile.latency_model.predict import Estimate


@dataclass(frozen=True)
class Candidate:
    """A network's architecture and what it costs. `latency` is at the precision that may ship."""

    architecture: dict[str, Any]
    macs: float
    params: int
    latency: Estimate


def met(budget: Budget, candidate: Candidate, teacher: Candidate) -> bool:
    """True when the candidate's median estimate keeps the budget."""
    if budget.macs is not None:
        return candidate.macs <= budget.macs
    if budget.latency_ms is not None:
        return candidate.latency.ms <= budget.latency_ms
    if budget.speedup is not None:
        return teacher.latency.ms / candidate.latency.ms >= budget.speedup
    return True


def widest(
    architectures: Sequence[dict[str, Any]],
    price: Callable[[dict[str, Any]], Candidate],
    budget: Budget,
    teachers: Mapping[str, Candidate],
) -> Candidate:
    """The first candidate in falling width that keeps the budget, found by bisection.

    Cost falls with width but for the odd rounding, so the neighbours that bisection ends at are
    both priced.

    Args:
        architectures: in falling width.
        price: of one of them.
        budget: what is to be kept.
        teachers: what a student of each precision is compared with.

    Raises:
        KDError: `budget-impossible`, naming the smallest reachable cost.
    """
    low, high = 0, len(architectures) - 1
    smallest = price(architectures[high])
    if not met(budget, smallest, teachers[smallest.latency.precision]):
        raise _impossible(budget, smallest, teachers[smallest.latency.precision])
    best = smallest
    while low < high:
        middle = (low + high) // 2
        candidate = price(architectures[middle])
        if met(budget, candidate, teachers[candidate.latency.precision]):
            best, high = candidate, middle
        else:
            low = middle + 1
    return best


def _impossible(budget: Budget, smallest: Candidate, teacher: Candidate) -> KDError:
    asked = ", ".join(f"{k} = {v:g}" for k, v in budget.model_dump(exclude_none=True).items())
    ratio = teacher.latency.ms / smallest.latency.ms
    reach = (
        f"speedup {ratio:.3g}, {smallest.latency.ms:.3g} ms, {smallest.macs:.3g} MACs "
        f"at width {smallest.architecture['width']:.3g}"
    )
    nearest = reachable(budget, ratio, smallest.latency.ms, smallest.macs)
    return KDError(
        "budget-impossible",
        f"no student of this family reaches {asked}; the smallest one: {reach}",
        where="[student] budget",
        fix=f"set {nearest} or weaker, lower export.shape, or name a student of your own",
    )


def reachable(budget: Budget, ratio: float, ms: float, macs: float) -> str:
    """The budget of the same kind that a student keeps, as a spec has it.

    Args:
        budget: the one that it does not keep.
        ratio: how many times faster than the teacher it is.
        ms, macs: its cost.
    """
    values = {"speedup": _below(ratio), "latency_ms": -_below(-ms), "macs": -_below(-macs)}
    name = next((n for n in values if getattr(budget, n) is not None), "latency_ms")
    if name == "speedup" and values[name] <= 1:  # not a budget
        name = "latency_ms"
    return f"budget = {{ {name} = {values[name]:.6g} }}"


def _below(value: float) -> float:
    """Rounded down to three digits, so that what a fix proposes is reached."""
    step = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return math.floor(value / step) * step
