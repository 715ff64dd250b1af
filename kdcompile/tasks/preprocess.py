"""The preprocessing of a spec's network, which depends on its task."""

from kdcompile.config.spec import Data, Export, Task
from kdcompile.data.preprocess import Padding, Preprocess
from kdcompile.tasks.task import find_task


def preprocess_of(data: Data, export: Export, task: Task) -> Preprocess:
    """The preprocessing that a spec describes; padding is mirrored for maps over the image."""
    low, _, high = export.profile
    sizes = (low[2], low[3]), (high[2], high[3])
    padding: Padding = "mirror" if find_task(task.kind).is_dense else "mean"
    return Preprocess(low[1], tuple(data.mean), tuple(data.std), *sizes, padding)
