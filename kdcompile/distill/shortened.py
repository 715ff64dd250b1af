"""Short trainings in place of a long one, and how what they gave is compared."""

from typing import Any

import numpy as np

from kdcompile.config.deploy import Quantize
from kdcompile.config.spec import Spec
from kdcompile.stats.bootstrap import resamples
from kdcompile.tasks.task import Floats, Task

RESAMPLES = 200
TIED = 1.645  # standard errors: one-sided 95 %


def shorten_training(spec: Spec, steps: int) -> Spec:
    """The spec whose training is `steps` long, its stages in their proportions, in float."""
    options = spec.distill.model_copy(
        update={"steps": steps, "epochs": None, "minutes": None, "stages": _shares(spec)}
    )
    return spec.model_copy(update={"distill": options, "quantize": Quantize()}).at(spec.path)


def _shares(spec: Spec) -> list[Any]:
    """The recipe's stages by their shares of the length."""
    stages = spec.distill.stages
    if not stages or stages[0].share is not None:
        return list(stages)
    total = sum(stage.steps or 0 for stage in stages)
    return [
        stage.model_copy(update={"share": (stage.steps or 0) / total, "steps": None})
        for stage in stages
    ]


def paired_increase(task: Task, whole: Floats, degraded: Floats, seed: int) -> tuple[float, float]:
    """How much worse the metric became, and its standard error over resampled images.

    No rate is known to less than one of the images, though all of them be answered alike.
    """
    metric, picks = task.metric, resamples(len(whole), RESAMPLES, seed)
    spread = metric.worse_by(metric.of(degraded[picks], -1), metric.of(whole[picks], -1))
    least = 1 / len(whole) if metric.points else 0.0
    increase = float(metric.worse_by(metric(degraded), metric(whole)))
    return increase, max(float(np.std(spread)), least)


def is_tied(worse: float, noise: float) -> bool:
    """Whether what `paired_increase` gave may be noise."""
    return worse <= max(0.0, TIED * noise)
