"""What a network's output means: its prediction for an image, its error, and how errors add up.

A task is one class here; everything that judges a network (training, the choice of a precision,
the gates, the report) asks it and knows no task by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcompile.data.photo import Photo
from kdcompile.errors import KDError, nearest

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """One number for the errors of many images.

    Args:
        name: as the spec and the reports write it.
        of: `of(errors, axis)`, vectorised over the other axes, for the bootstrap.
        higher: larger is better.
        points: limits in per cent are percentage points of the metric, not a share of the
            teacher's value; for metrics that are rates.
    """

    name: str
    of: Callable[..., Any]
    higher: bool = False
    points: bool = False

    def __call__(self, errors: Sequence[float] | Floats) -> float:
        """The metric of some errors [N]."""
        return float(self.of(np.asarray(errors, np.float64), axis=-1))

    def worse_by(self, student: Any, teacher: Any) -> Any:
        """How much worse the student is, negative where it is better; numbers or arrays."""
        return teacher - student if self.higher else student - teacher

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value beats another; NaN beats nothing, and everything beats NaN."""
        if np.isnan(than):
            return not np.isnan(value)
        return value > than if self.higher else value < than

    def allowance(self, teacher: float, share: float) -> float:
        """What `share` of a per cent limit (0.05 of "5%") allows beside the teacher's value."""
        return share if self.points else share * abs(teacher)

    @property
    def worst(self) -> float:
        """The value that every measured one beats."""
        return -np.inf if self.higher else np.inf


def _mae(errors: Floats, axis: int = -1) -> Any:
    return np.mean(np.abs(errors), axis=axis)


def _rmse(errors: Floats, axis: int = -1) -> Any:
    return np.sqrt(np.mean(np.square(errors), axis=axis))


def _top1(errors: Floats, axis: int = -1) -> Any:
    return 1.0 - np.mean(errors, axis=axis)


MAE, RMSE = Metric("mae", _mae), Metric("rmse", _rmse)
TOP1 = Metric("top1", _top1, higher=True, points=True)


class Task(ABC):
    """What is predicted for an image.

    kind: as `[task] kind` names it; output: the name of the network's output in ONNX files;
    unit: of a prediction, in words; metrics: the first one selects the student.
    """

    kind: ClassVar[str]
    output: ClassVar[str]
    unit: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]

    @property
    def metric(self) -> Metric:
        """The metric that selects the student and that a gate judges unless it names another."""
        return self.metrics[0]

    def find_metric(self, name: str | None) -> Metric:
        """The metric of that name, or the first one.

        Raises:
            KDError: `metric-unknown`.
        """
        if name is None:
            return self.metric
        known = {metric.name: metric for metric in self.metrics}
        if name not in known:
            raise KDError(
                "metric-unknown",
                f"{self.kind} has no metric {name!r}{nearest(name, known)}",
                where="[gates] accuracy",
                fix=f"use one of {', '.join(known)}",
            )
        return known[name]

    def scores(self, predicted: Sequence[float], true: Sequence[float]) -> dict[str, float]:
        """Every metric by name."""
        errors = self.errors(predicted, true)
        return {metric.name: metric(errors) for metric in self.metrics}

    @abstractmethod
    def truth(self, photo: Photo) -> float:
        """The annotated value of an image."""

    @abstractmethod
    def predictions(self, output: NDArray[Any]) -> Floats:
        """A batch's output [N, ...] as one number an image, float64 [N]."""

    def errors(self, predicted: Sequence[float] | Floats, true: Sequence[float] | Floats) -> Floats:
        """One error an image, float64 [N]; here signed differences."""
        return np.subtract(predicted, true, dtype=np.float64)

    def constant(self, train: Sequence[float]) -> float:
        """The constant prediction that does best on the training images."""
        return float(np.median(train))

    @abstractmethod
    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with an output of this shape for one image, or None."""


class Counting(Task):
    """Points to be counted by a density map [N, 1, h, w], whose sum is the count."""

    kind, output, unit = "counting", "density", "count"
    metrics = (MAE, RMSE)

    def truth(self, photo: Photo) -> float:
        """The number of annotated points."""
        return float(photo.count)

    def predictions(self, output: NDArray[Any]) -> Floats:
        """The sum of each map."""
        return np.asarray(output.reshape(len(output), -1).sum(1, dtype=np.float64))

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Four axes and one channel."""
        good = len(shape) == 4 and shape[1] == 1
        return None if good else "counting needs a density map [N, 1, h, w]"


class Classification(Task):
    """One class an image, by logits [N, K]."""

    kind, output, unit = "classification", "logits", "class"
    metrics = (TOP1,)

    def truth(self, photo: Photo) -> float:
        """The class's index."""
        return photo.labelled()

    def predictions(self, output: NDArray[Any]) -> Floats:
        """The class with the largest logit; -1, which is never right, where one is no number."""
        finite = np.isfinite(output).all(axis=1)
        return np.where(finite, output.argmax(axis=1), -1).astype(np.float64)

    def errors(self, predicted: Sequence[float] | Floats, true: Sequence[float] | Floats) -> Floats:
        """1 where the class is wrong, 0 where it is right."""
        return np.not_equal(predicted, true).astype(np.float64)

    def constant(self, train: Sequence[float]) -> float:
        """The most frequent class."""
        values, counts = np.unique(train, return_counts=True)
        return float(values[counts.argmax()])

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Two axes and at least two classes."""
        good = len(shape) == 2 and shape[1] >= 2
        return None if good else "classification needs logits [N, K] of at least two classes"


class Regression(Task):
    """One number an image, by an output [N, 1]."""

    kind, output, unit = "regression", "value", "value"
    metrics = (MAE, RMSE)

    def truth(self, photo: Photo) -> float:
        """The annotated number."""
        return photo.labelled()

    def predictions(self, output: NDArray[Any]) -> Floats:
        """The output itself."""
        return np.asarray(output.reshape(len(output)), np.float64)

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Two axes and one value."""
        return None if tuple(shape[1:]) == (1,) else "regression needs one value an image, [N, 1]"


TASKS: dict[str, Task] = {task.kind: task for task in (Counting(), Classification(), Regression())}


def find_task(kind: str) -> Task:
    """The task of `[task] kind`, which the schema has checked."""
    return TASKS[kind]
