"""The task `generic`: any outputs, evaluated by how far they are from the teacher's.

It needs no labels: what is to be predicted of a sample are the teacher's own outputs for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.config.spec import Scores, Spec
from kdcompile.core.errors import KDError
from kdcompile.core.plugins import register
from kdcompile.core.ports import Ports
from kdcompile.core.user_code import load_factory, users_code
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.agreement import LIMIT_DB, TINY, distance
from kdcompile.tasks.along import disagreement
from kdcompile.tasks.metric import RELATIVE, Metric
from kdcompile.tasks.over_set import SET_SCORE, OverSet
from kdcompile.tasks.task import Floats, Stratum, Task

Arrays = Mapping[str, NDArray[Any]]


DISAGREEMENT = Metric("disagreement", RELATIVE.of, absolute=True, most=1.0)
SQNR = Metric("sqnr_db", RELATIVE.of, higher=True, whole=True, told=True)
SCORE = Metric("score", RELATIVE.of)
AGREEMENT = (RELATIVE, DISAGREEMENT)
MEASURED = {metric.name for metric in AGREEMENT} | {SET_SCORE}  # known once a student is


def _of_outputs(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """The same where they are not what a prediction is."""
    return tuple(replace(metric, whole=True) for metric in metrics)


@register("tasks", "generic")
class Generic(Task):
    """Rows of outputs [N, width], compared with the teacher's output by output.

    A prediction is the sample's error: |S - T| / |T| by Euclidean norms, of the output that is
    worst, or another of `AGREEMENT`.
    """

    kind = like = "generic"
    output, unit = "outputs", "1"
    metrics: tuple[Metric, ...] = (RELATIVE,)
    map_metrics = _of_outputs([DISAGREEMENT])  # that a spec may name
    parts, takes_rows = "by_error", True

    def __init__(self, axes: Mapping[str, Scores] | None = None, first: str | None = None) -> None:
        """With scores along the axes of some outputs; `first` names the metric of predictions."""
        self.axes = axes or {}
        known = AGREEMENT if self.axes else AGREEMENT[:1]
        name = first or RELATIVE.name
        self.metrics = tuple(metric for metric in known if metric.name == name)
        others = [metric for metric in known if metric.name != name]
        self.map_metrics = (*_of_outputs(others), SQNR)

    def judged_by(self, spec: Spec) -> Task:
        """With the outputs that the spec describes, and by the metric that it names.

        Raises:
            KDError: `task-metric`, or those of `load_factory`.
        """
        asked, name = spec.task, spec.task.metric
        if name is None and not asked.outputs:
            return self
        if name is not None and ":" in name:
            kind = ScoredSet if asked.metric_over == "set" else Scored
            return kind(load_factory(name, spec.folder), name, asked.outputs)
        if name == DISAGREEMENT.name and not asked.outputs:
            raise KDError(
                "task-metric",
                "no output has classes to disagree on",
                where=f"{spec.path} [task] metric",
                fix="name the axis of the classes of an output: [task.outputs.NAME] axis = 1",
            )
        return Generic(asked.outputs, name)

    def truth(self, photo: Photo) -> float:
        """The teacher's own error."""
        return 0.0

    def unit_of(self, metric: Metric) -> str:
        """Decibels of an SQNR."""
        return "dB" if metric is SQNR else super().unit_of(metric)

    def within(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """One sample's row [1, width] behind its error; the row where no answer is known."""
        if not frame.answer:
            return output
        own = Ports.of(frame.answer).unpack(output)
        return np.concatenate([[[self.measure(self.metric, own, frame)]], output], axis=1)

    def measure(self, metric: Metric, outputs: Arrays, frame: Frame) -> float:
        """What one sample has by a metric.

        Args:
            metric: of this task.
            outputs: of the network, by name.
            frame: the teacher's outputs, and the sample's own arrays.
        """
        if metric.name == DISAGREEMENT.name:
            return disagreement(outputs, frame.answer, self.axes)
        error = distance(outputs, frame.answer)
        if metric is not SQNR:
            return error
        return float(np.clip(-20 * np.log10(max(error, TINY)), -LIMIT_DB, LIMIT_DB))

    def predictions(self, output: NDArray[Any]) -> Floats:
        """The error that `within` gave."""
        return np.asarray(output.reshape(len(output), -1)[:, 0], np.float64)

    def map_errors(self, output: NDArray[Any], photo: Photo, frame: Frame) -> Floats:
        """Of the outputs behind the error that `within` gave."""
        own = Ports.of(frame.answer).unpack(output[:, 1:])
        return np.array([self.measure(metric, own, frame) for metric in self.map_metrics])

    def describe(self, output: NDArray[Any], classes: Sequence[str] | None) -> dict[str, Any]:
        """Nothing: what the outputs mean only their network knows."""
        return {}

    def groups(self, true: Floats, classes: Sequence[str] | None) -> list[Stratum]:
        """None."""
        return []

    def constant(self, train: Sequence[float]) -> float:
        """The error of answering nothing but zeros, which names the first class everywhere."""
        return 1.0

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Any."""
        return None


class Scored(Generic):
    """Outputs that a function of the user's gives one number a sample: its error, 0 at best."""

    def __init__(
        self,
        score: Callable[[Arrays, Arrays], float],
        name: str,
        axes: Mapping[str, Scores] | None = None,
    ) -> None:
        """`score(outputs, sample)`, both arrays by name, under the name that the spec has."""
        super().__init__(axes)
        self.score, self.name = score, name
        self.map_metrics = (*_of_outputs(self.metrics), *self.map_metrics)
        self.metrics = (SCORE,)

    def measure(self, metric: Metric, outputs: Arrays, frame: Frame) -> float:
        """What the function says, or the agreement with the teacher.

        Raises:
            KDError: `task-metric`, it fails or gives no number.
        """
        if metric is not SCORE:
            return super().measure(metric, outputs, frame)
        fix = "return one number, 0 at best, from (outputs, sample), arrays by name"
        with users_code("task-metric", f"{self.name} fails", "[task] metric", fix):
            return float(self.score(dict(outputs), dict(frame.sample)))

    def constant(self, train: Sequence[float]) -> float:
        """Not known."""
        return float("nan")


class ScoredSet(Generic):
    """Outputs that a function of the user's gives one number for all samples of a set.

    A gate judges by it. What looks at one sample after the other, the training and the choice of a
    precision, goes by the error relative to the teacher's outputs.
    """

    def __init__(
        self,
        score: Callable[[Sequence[Arrays], Sequence[Arrays]], float],
        name: str,
        axes: Mapping[str, Scores] | None = None,
    ) -> None:
        """`score(outputs, samples)`, lists of arrays by name, under the name that the spec has."""
        super().__init__(axes)
        self.over = OverSet(score, name)
        self.map_metrics = (self.over.metric, *self.map_metrics)

    @property
    def judged(self) -> Metric:
        """The function's."""
        return self.over.metric

    def measure(self, metric: Metric, outputs: Arrays, frame: Frame) -> float:
        """Which of the kept samples it is, where the set is what has a number."""
        if metric is self.over.metric:
            return self.over.keep(outputs, frame.sample)
        return super().measure(metric, outputs, frame)
