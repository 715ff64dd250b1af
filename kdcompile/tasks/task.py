"""What a network's output means: its prediction for an image, its error, and how errors add up.

A task is one class here; everything that judges a network (training, the choice of a precision,
the gates, the report) asks it and knows no task by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError, nearest
from kdcompile.data.frame import Frame
from kdcompile.data.photo import Photo
from kdcompile.data.strata import Stratum, by_class, by_value
from kdcompile.tasks.game import game_errors
from kdcompile.tasks.metric import GAMES, MAE, RMSE, TOP1, Metric

Floats = NDArray[np.float64]


class Task(ABC):
    """What is predicted for an image.

    kind: as `[task] kind` names it; output: the name of the network's output in ONNX files;
    unit: of a prediction, "1" where it has none; metrics: of predictions, the first one selects
    the student; map_metrics: of density maps, known only where whole outputs are at hand;
    is_dense: the output is a map over the image; parts: the report's key for accuracy in `groups`.
    """

    kind: ClassVar[str]
    output: ClassVar[str]
    unit: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    map_metrics: ClassVar[tuple[Metric, ...]] = ()
    is_dense: ClassVar[bool] = False
    parts: ClassVar[str]

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
        known = {metric.name: metric for metric in (*self.metrics, *self.map_metrics)}
        if name not in known:
            raise KDError(
                "metric-unknown",
                f"{self.kind} has no metric {name!r}{nearest(name, known)}",
                where="[gates] accuracy",
                fix=f"use one of {', '.join(known)}",
            )
        return known[name]

    def selection_metric(self, name: str | None) -> Metric:
        """The metric that selects a precision where a gate judges the one of that name.

        It is that one, or the first where it is of maps: selection keeps predictions only.

        Raises:
            KDError: `metric-unknown`.
        """
        metric = self.find_metric(name)
        return metric if metric.level is None else self.metric

    def scores(self, predicted: Sequence[float], true: Sequence[float]) -> dict[str, float]:
        """Every metric of predictions by name."""
        errors = self.errors(predicted, true)
        return {metric.name: metric(errors) for metric in self.metrics}

    def unit_of(self, metric: Metric) -> str:
        """The unit of a metric: the predictions', and "1" for a rate."""
        return "1" if metric.points else self.unit

    def facts(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """What a report and a bundle must know of the task, as JSON values."""
        return {
            "kind": self.kind,
            "output": self.output,
            "unit": self.unit,
            "metric": self.metric.name,
            "metrics": [metric.name for metric in self.metrics],
            "is_rate": self.metric.points,
            "is_dense": self.is_dense,
            "classes": None if classes is None else list(classes),
        }

    @abstractmethod
    def truth(self, photo: Photo) -> float:
        """The annotated value of an image."""

    @abstractmethod
    def predictions(self, output: NDArray[Any]) -> Floats:
        """A batch's output [N, ...] as one number an image, float64 [N]."""

    def within(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """A batch's output [N, ...] without what a map [N, C, h, w] says of the padding."""
        return output * frame.inside(*output.shape[2:]) if self.is_dense else output

    def errors(self, predicted: Sequence[float] | Floats, true: Sequence[float] | Floats) -> Floats:
        """One error an image, float64 [N]; here signed differences."""
        return np.subtract(predicted, true, dtype=np.float64)

    def difficulty(self, output: NDArray[Any], true: float) -> float:
        """How far one image's output [1, ...] is from the truth, at least 0."""
        return float(np.abs(self.errors(self.predictions(output), [true]))[0])

    @abstractmethod
    def describe(self, output: NDArray[Any], classes: Sequence[str] | None) -> dict[str, Any]:
        """One image's output [1, ...] in words, as JSON values."""

    def name_of(self, prediction: float, classes: Sequence[str] | None) -> str | float:
        """A prediction, or a true value, as a report shows it."""
        return prediction

    def groups(self, true: Floats, classes: Sequence[str] | None) -> list[Stratum]:
        """Parts of the images whose accuracy is worth telling apart: thirds by true value."""
        return by_value(true)

    def map_errors(self, output: NDArray[Any], photo: Photo, frame: Frame) -> Floats:
        """The errors of one image's output [1, ...] by each of `map_metrics`, float64 [M]."""
        return np.zeros(0)

    def check_labels(
        self, labels: Sequence[float], outputs: int, classes: Sequence[str] | None
    ) -> str | None:
        """What is wrong with the labels of some images for a network of so many outputs, or None.

        Classes are the names that the data has for them, if any.
        """
        return None

    def constant(self, train: Sequence[float]) -> float:
        """The constant prediction that does best on the training images."""
        return float(np.median(train))

    @abstractmethod
    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with an output of this shape for one image, or None."""


class Counting(Task):
    """Points to be counted by a density map [N, 1, h, w], whose sum is the count."""

    kind, output, unit = "counting", "density", "count"
    metrics, map_metrics = (MAE, RMSE), GAMES
    is_dense, parts = True, "by_density"

    def truth(self, photo: Photo) -> float:
        """The number of annotated points.

        Raises:
            KDError: `points-missing`.
        """
        if photo.label is not None:
            raise KDError(
                "points-missing",
                f"{photo.name} has a label, where points are to be counted",
                where="[task] kind and [data] format",
                fix='set task.kind to "classification" or "regression", or use a format of points',
            )
        return float(photo.count)

    def predictions(self, output: NDArray[Any]) -> Floats:
        """The sum of each map."""
        return np.asarray(output.reshape(len(output), -1).sum(1, dtype=np.float64))

    def map_errors(self, output: NDArray[Any], photo: Photo, frame: Frame) -> Floats:
        """GAME at each level."""
        return game_errors(output[0, 0], photo.points, frame)

    def describe(self, output: NDArray[Any], classes: Sequence[str] | None) -> dict[str, Any]:
        """`count`."""
        return {"count": float(self.predictions(output)[0])}

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Four axes and one channel."""
        good = len(shape) == 4 and shape[1] == 1
        return None if good else "counting needs a density map [N, 1, h, w]"


class Classification(Task):
    """One class an image, by logits [N, K]."""

    kind, output, unit = "classification", "logits", "class"
    metrics, parts = (TOP1,), "by_class"

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

    def difficulty(self, output: NDArray[Any], true: float) -> float:
        """1 less the probability of the true class."""
        return 1.0 - float(_softmax(output[0])[int(true)])

    def describe(self, output: NDArray[Any], classes: Sequence[str] | None) -> dict[str, Any]:
        """`class`, its name or else its index, and `probability`."""
        chosen = self.predictions(output)[0]
        return {
            "class": self.name_of(chosen, classes),
            "probability": float(_softmax(output[0])[int(chosen)]),
        }

    def name_of(self, prediction: float, classes: Sequence[str] | None) -> str | float:
        """The name of a class, or its index where classes have none; `none` for no class."""
        if prediction < 0:
            return "none"
        return str(int(prediction)) if classes is None else classes[int(prediction)]

    def groups(self, true: Floats, classes: Sequence[str] | None) -> list[Stratum]:
        """The images of each class."""
        return by_class(true, lambda value: self.name_of(value, classes))

    def check_labels(
        self, labels: Sequence[float], outputs: int, classes: Sequence[str] | None
    ) -> str | None:
        """Indices of the outputs, one output a class."""
        if classes is not None and len(classes) != outputs:
            return f"the data has {len(classes)} classes, the network {outputs} outputs"
        wrong = [label for label in labels if label not in range(outputs)]
        if wrong:
            return f"a label of {wrong[0]:g} is no index of the network's {outputs} outputs"
        return None

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

    kind, output, unit = "regression", "value", "1"
    metrics, parts = (MAE, RMSE), "by_value"

    def truth(self, photo: Photo) -> float:
        """The annotated number."""
        return photo.labelled()

    def predictions(self, output: NDArray[Any]) -> Floats:
        """The output itself."""
        return np.asarray(output.reshape(len(output)), np.float64)

    def describe(self, output: NDArray[Any], classes: Sequence[str] | None) -> dict[str, Any]:
        """`value`."""
        return {"value": float(self.predictions(output)[0])}

    def check_labels(
        self, labels: Sequence[float], outputs: int, classes: Sequence[str] | None
    ) -> str | None:
        """Values, and not classes that have names."""
        return None if classes is None else "the data has classes, not values to be predicted"

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Two axes and one value."""
        return None if tuple(shape[1:]) == (1,) else "regression needs one value an image, [N, 1]"


def _softmax(logits: NDArray[Any]) -> Floats:
    """Probabilities of one image's logits [K]."""
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum())


TASKS: dict[str, Task] = {task.kind: task for task in (Counting(), Classification(), Regression())}


def find_task(kind: str) -> Task:
    """The task of `[task] kind`, or of a bundle's manifest.

    Raises:
        KDError: `task-unknown`.
    """
    if kind not in TASKS:
        raise KDError(
            "task-unknown",
            f"there is no task {kind!r}{nearest(str(kind), TASKS, 0.7)}",
            where="[task] kind, or a bundle's manifest.json",
            fix=f"use one of {', '.join(TASKS)}",
        )
    return TASKS[kind]
