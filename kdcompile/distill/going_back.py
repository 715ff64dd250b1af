"""Rule that a training does not spoil its start: back to the best weights, at half the rate.

A rate that suits random weights destroys an inherited start in a few steps, and what is left of the
training then mends the damage. A validation that is worse than the start's beyond its noise ends
that: student and moving average take the best weights again, the optimizer forgets its moments, and
the rate of what is left is halved.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from kdcompile.distill.phase import StageRun
from kdcompile.distill.state import State
from kdcompile.stats.drawn import bounds_of
from kdcompile.tasks.task import Floats, Task

LESS = 0.5  # of the rate, each time
DRIFT = 0.05  # of the start's metric, or points of a rate: a training may pass through as much


def is_spoilt(task: Task, start: Floats, now: Floats, true: Sequence[float], seed: int) -> bool:
    """Whether a student is worse than at its start, beyond the noise of the validation photos.

    Args:
        task: of the predictions.
        start: what the student predicted before the first step, float64 [N] or rows.
        now: what it predicts, [N].
        true: annotated values, [N].
        seed: of the resampling.

    Returns:
        True where the one-sided 95 % bound of how much worse it is lies over `DRIFT`, paired over
        the photos, or a prediction became no number; False of too few photos to tell.
    """
    metric, before, errors = task.metric, task.errors(start, true), task.errors(now, true)
    if not np.isfinite(errors).all():
        return True
    allowed = metric.allowance(metric(before), DRIFT)
    if metric.worse_by(metric(errors), metric(before)) <= allowed:
        return False  # what no bound of it exceeds
    low, _ = bounds_of(metric)(metric, before, errors, seed)
    return low is not None and low > allowed


def rate_of(state: State) -> float:
    """The share of the spec's learning rate that is left."""
    return float(LESS ** len(state.returns))


@torch.no_grad()
def go_back(run: StageRun, state: State, networks: Sequence[nn.Module], value: float) -> None:
    """Give the networks the best weights, in place, and the stage its lower rate."""
    for network in networks:
        network.load_state_dict(state.best)
    run.update.forget()
    state.returns.append({"step": state.step, "value": value})
    run.rate = rate_of(state)


def returns_finding(
    name: str, returns: Sequence[Mapping[str, Any]], start: float, lr: float
) -> list[str]:
    """What is told of it, in words.

    Args:
        name: of the metric.
        returns: each time that the training went back.
        start: the metric before the first step.
        lr: of the spec.
    """
    if not returns:
        return []
    times = "once" if len(returns) == 1 else f"{len(returns)} times"
    first = returns[0]
    return [
        f"the learning rate was too high for this start: validation {name} went from {start:.4g} "
        f"to {first['value']:.4g} by step {first['step']}; the training went back to its best "
        f"weights {times} and halved the rate each time, to {lr * LESS ** len(returns):.3g} at "
        f"most; set distill.lr (now {lr:.3g}) to that"
    ]
