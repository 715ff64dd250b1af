"""The task `generic`: any outputs, evaluated by how far they are from the teacher's.

It needs no labels: what is to be predicted of a sample are the teacher's own outputs for it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.config.spec import Spec
from kdcompile.core.plugins import register
from kdcompile.core.ports import Ports
from kdcompile.core.user_code import load_factory, users_code
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.agreement import distance
from kdcompile.tasks.metric import RELATIVE, Metric
from kdcompile.tasks.task import Floats, Stratum, Task

Arrays = Mapping[str, NDArray[Any]]


@register("tasks", "generic")
class Generic(Task):
    """Rows of outputs [N, width], compared with the teacher's output by output.

    The error of a sample is |S - T| / |T| by Euclidean norms, of the output that is worst.
    """

    kind = like = "generic"
    output, unit = "outputs", "1"
    metrics, parts, takes_rows = (RELATIVE,), "by_error", True

    def judged_by(self, spec: Spec) -> Task:
        """By the user's own function, where the spec names one."""
        name = spec.task.metric
        return self if name is None else Scored(load_factory(name, spec.folder), name)

    def truth(self, photo: Photo) -> float:
        """The teacher's own error."""
        return 0.0

    def within(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """Of one sample's row [1, width] the error [1, 1]; the row where no answer is known."""
        if not frame.answer:
            return output
        own = Ports.of(frame.answer).unpack(output)
        return np.array([[self.error(own, frame)]])

    def error(self, outputs: Arrays, frame: Frame) -> float:
        """The error of one sample.

        Args:
            outputs: of the network, by name.
            frame: the teacher's outputs, and the sample's own arrays.
        """
        return distance(outputs, frame.answer)

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


class Scored(Generic):
    """Outputs that a function of the user's gives one number a sample: its error, 0 at best."""

    metrics = (Metric("score", RELATIVE.of),)

    def __init__(self, score: Callable[[Arrays, Arrays], float], name: str) -> None:
        """`score(outputs, sample)`, both arrays by name, under the name that the spec has."""
        self.score, self.name = score, name

    def error(self, outputs: Arrays, frame: Frame) -> float:
        """What the function says.

        Raises:
            KDError: `task-metric`, it fails or gives no number.
        """
        fix = "return one number, 0 at best, from (outputs, sample), arrays by name"
        with users_code("task-metric", f"{self.name} fails", "[task] metric", fix):
            return float(self.score(dict(outputs), dict(frame.sample)))

    def constant(self, train: Sequence[float]) -> float:
        """Not known."""
        return float("nan")
