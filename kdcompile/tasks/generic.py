"""The task `generic`: any outputs, judged by how far they are from the teacher's.

It needs no labels: what is to be predicted of a sample are the teacher's own outputs for it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.plugins import register
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import Floats, Stratum, Task

TINY = 1e-12


def _mean(errors: Floats, axis: int = -1) -> Any:
    return np.mean(errors, axis=axis)


RELATIVE = Metric("rel_error", _mean, absolute=True)


@register("tasks", "generic")
class Generic(Task):
    """Rows of outputs [N, width], compared with the teacher's output by output.

    The error of a sample is |S - T| / |T| by Euclidean norms, of the output that is worst.
    """

    kind = like = "generic"
    output, unit = "outputs", "1"
    metrics, parts, takes_rows = (RELATIVE,), "by_error", True

    def truth(self, photo: Photo) -> float:
        """The teacher's own error."""
        return 0.0

    def within(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """Of one sample's row [1, width] the error [1, 1]; the row where no answer is known."""
        if not frame.answer:
            return output
        return np.array([[relative_error(output[0], frame.answer)]])

    def predictions(self, output: NDArray[Any]) -> Floats:
        """The error that `within` gave."""
        return np.asarray(output.reshape(len(output), -1)[:, 0], np.float64)

    def describe(self, output: NDArray[Any], classes: Sequence[str] | None) -> dict[str, Any]:
        """Nothing: what the outputs mean only their network knows."""
        return {}

    def groups(self, true: Floats, classes: Sequence[str] | None) -> list[Stratum]:
        """None."""
        return []

    def constant(self, train: Sequence[float]) -> float:
        """The error of answering nothing but zeros."""
        return 1.0

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Any."""
        return None


def relative_error(row: NDArray[Any], answer: Sequence[NDArray[Any]]) -> float:
    """The largest of the outputs' relative errors; NaN where one is no number.

    Args:
        row: values of all outputs [width].
        answer: the teacher's, [size] each.
    """
    ends = np.cumsum([len(part) for part in answer])
    worst = 0.0
    for part, end in zip(answer, ends, strict=True):
        own = row[end - len(part) : end].astype(np.float64)
        error = np.linalg.norm(own - part) / max(float(np.linalg.norm(part)), TINY)
        worst = max(worst, float(error)) if not np.isnan(error) else float("nan")
    return worst
