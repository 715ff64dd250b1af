"""The use that a training makes of images without labels: whether, and how many of a batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdcompile.config.distill import Distill, DistillStage
from kdcompile.config.spec import Spec
from kdcompile.core import plugins
from kdcompile.core.errors import KDError

if TYPE_CHECKING:  # a plan without work to do loads no PyTorch
    from kdcompile.distill.objective_base import Objective

LABELS_ALONE = "none"  # the recipe that asks no teacher


def uses_pool(spec: Spec) -> bool:
    """Whether the training reads `data.unlabelled`, for its recipes or as samples of their own."""
    options = spec.distill
    if not spec.data.unlabelled:
        return False
    joins = joins_training(spec)
    every: Sequence[Distill | DistillStage] = options.stages or [options]
    for stage in every:
        share = options.unlabelled if stage.unlabelled is None else stage.unlabelled
        if share > 0 and (joins or (stage.recipe or options.recipe) != LABELS_ALONE):
            return True
    return False


def joins_training(spec: Spec) -> bool:
    """Whether the task needs no labels, so that photos without any train as all others do."""
    task = plugins.plugin("tasks", spec.task.kind)
    return task is not None and bool(getattr(task.value, "takes_rows", False))


def pool_crops(options: Distill) -> int:
    """How many crops of a batch are of photos without labels; one at least has labels."""
    if not options.unlabelled or options.batch < 2:
        return 0
    return min(options.batch - 1, max(1, round(options.unlabelled * options.batch)))


def refuse_pool(spec: Spec, options: Distill, objective: "type[Objective]") -> None:
    """Refuse a batch that cannot be shared, and losses that say nothing of images without labels.

    Args:
        spec: of the training.
        options: of a stage.
        objective: the task's losses.

    Raises:
        KDError: `pool-batch` or `pool-objective`.
    """
    if not options.unlabelled or not uses_pool(spec) or joins_training(spec):
        return
    if not objective.has_soft():
        raise KDError(
            "pool-objective",
            f"{objective.__name__} has no soft term of images without labels",
            where="[data] unlabelled",
            fix="give the objective a method soft(student, teacher), or set distill.unlabelled = 0",
        )
    if options.batch < 2:
        raise KDError(
            "pool-batch",
            "a batch of 1 image cannot be shared by images with and without labels",
            where="[distill] batch",
            fix="set distill.batch to 2 or more, or distill.unlabelled = 0",
        )
