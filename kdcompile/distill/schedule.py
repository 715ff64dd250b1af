"""How many steps, and the learning rate at each."""

import math
import time
from collections.abc import Callable

from kdcompile.spec import Distill

DEFAULT_EPOCHS = 100
TIMED_STEPS = 5


def learning_rate(step: int, total: int, options: Distill) -> float:
    """Linear warm-up over a share of the steps, then a cosine to zero (Loshchilov, 2017)."""
    warm = math.ceil(options.warmup * total)
    if step < warm:
        return options.lr * (step + 1) / warm
    return options.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def total_steps(options: Distill, n_train: int, timed_step: Callable[[], None]) -> int:
    """Steps from `steps`, `epochs` or `minutes`; a few throw-away steps are timed for minutes.

    The result must be kept: timing again would give another number.
    """
    if options.steps is not None:
        return options.steps
    if options.minutes is None:
        epochs = options.epochs if options.epochs is not None else DEFAULT_EPOCHS
        return max(1, math.ceil(epochs * n_train / options.batch))
    timed_step()
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        timed_step()
    each = (time.perf_counter() - start) / TIMED_STEPS
    return max(1, int(options.minutes * 60 / each))


def evaluation_steps(total: int, evaluations: int) -> set[int]:
    """The numbers of finished steps after which the student is validated; the last is one."""
    return {max(1, round(total * n / evaluations)) for n in range(1, evaluations + 1)}
