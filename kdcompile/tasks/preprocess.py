"""The preprocessing of a spec's network, which depends on its task."""

from kdcompile.config.spec import Spec
from kdcompile.data.preprocess import Padding, Preprocess
from kdcompile.tasks.task import task_of


def preprocess_of(spec: Spec) -> Preprocess:
    """The preprocessing that a spec describes; padding is mirrored for maps over the image."""
    low, _, high = spec.export.profile
    sizes = (low[2], low[3]), (high[2], high[3])
    padding: Padding = "mirror" if task_of(spec).is_dense else "mean"
    return Preprocess(low[1], tuple(spec.data.mean), tuple(spec.data.std), *sizes, padding)
