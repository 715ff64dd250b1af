"""The stages of a training, how many steps each has, and the learning rate at each step."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdcompile.config.distill import Distill

DEFAULT_EPOCHS = 100
TIMED_STEPS = 5
ONE_STAGE = "distill"


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
