"""The use that a training makes of images without labels: whether, and how many of a batch."""

from collections.abc import Sequence

from kdcompile.config.distill import Distill, DistillStage
from kdcompile.config.spec import Spec
from kdcompile.core import plugins
from kdcompile.core.errors import KDError

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


def refuse_small_batch(spec: Spec, options: Distill) -> None:
    """Refuse a batch that cannot be shared.

    Raises:
        KDError: `pool-batch`.
    """
    if spec.data.unlabelled and options.unlabelled and options.batch < 2 and uses_pool(spec):
        raise KDError(
            "pool-batch",
            "a batch of 1 image cannot be shared by images with and without labels",
            where="[distill] batch",
            fix="set distill.batch to 2 or more, or distill.unlabelled = 0",
        )
