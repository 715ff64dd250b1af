"""Base class of tasks: the prediction of an output, its error, and how errors add up.

A task is one class here; everything that evaluates a network (training, the choice of a precision,
the gates, the report) asks it and knows no task by name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from kdcompile.config.spec import Scores, Spec
from kdcompile.core import plugins
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.ports import Port, Ports
from kdcompile.core.user_code import load_factory, users_code
from kdcompile.data.coreset import described
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Padding, Preprocess, RowPreprocess
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.strata import Stratum as Stratum
from kdcompile.tasks.strata import by_value

Floats = NDArray[np.float64]
IMAGE = "image"  # the input of a network of photos


class Task(ABC):
    """What is predicted for an image.

    kind: as `[task] kind` names it; like: the built-in task as which recipes, boards, reports and
    bundles take its outputs: "counting", a map that is summed, "classification", logits,
    "regression", one number, or "generic", anything; output: the name of the network's output in
    ONNX files; unit: of a prediction, "1" where it has none; metrics: of predictions, the first one
    selects the student; map_metrics: of whole outputs, known only where these are available;
    is_dense: the output is a map over the image; has_classes: it is one number a class; takes_rows:
    its networks take and give any tensors, as rows (`kdcompile.core.ports`), and are held against
    the teacher's outputs; joins_outputs: a network's several outputs are made one
    (`kdcompile.models.joined`); records: its predictions are rows, with a record that metrics of
    the set read behind the error of the image (`kdcompile.tasks.recording`); axes: of which outputs
    of `takes_rows` the values along an axis are scores of classes; parts: the report's key for
    accuracy in `groups`; labels: of boxes and masks those that a format reads; output_fit: what a
    trained student's output may be calibrated by (`distill.output_calibration`), or None.
    """

    kind: ClassVar[str]
    like: ClassVar[str]
    output: ClassVar[str]
    unit: ClassVar[str]
    metrics: tuple[Metric, ...]
    map_metrics: tuple[Metric, ...] = ()
    is_dense: ClassVar[bool] = False
    has_classes: ClassVar[bool] = False
    takes_rows: ClassVar[bool] = False
    joins_outputs: bool = False
    records: ClassVar[bool] = False
    axes: Mapping[str, Scores] = MappingProxyType({})
    parts: ClassVar[str]
    labels: ClassVar[Literal["boxes", "masks"] | None] = None
    output_fit: ClassVar[Literal["scale", "affine", "temperature"] | None] = None

    def objective(self) -> Any:
        """The class of its losses (`distill.objective.Objective`); None: those of `like`.

        Import it in here: only what trains has a use for PyTorch.
        """
        return None

    def judged_by(self, spec: Spec) -> "Task":
        """The task with what `[task]` of a spec says beside its kind.

        Raises:
            KDError: `task-metric`, or those of `load_factory`.
        """
        if spec.task.metric is None:
            return self
        raise KDError(
            "task-metric",
            f"{self.kind} has metrics of its own: {', '.join(m.name for m in self.metrics)}",
            where=f"{spec.path} [task] metric",
            fix="leave task.metric out; gates.accuracy.metric names one of them",
        )

    @property
    def uses_frames(self) -> bool:
        """Whether `within` looks at where a photo lies, or at the teacher's answer."""
        return self.is_dense or self.takes_rows or self.records

    @property
    def metric(self) -> Metric:
        """The metric that selects the student."""
        return self.metrics[0]

    @property
    def judged(self) -> Metric:
        """The metric that a gate judges unless it names another."""
        return self.metric

    def find_metric(self, name: str | None) -> Metric:
        """The metric of that name, or the one that a gate judges.

        Raises:
            KDError: `metric-unknown`.
        """
        if name is None:
            return self.judged
        every = (*self.metrics, *self.map_metrics)
        known = {metric.name: metric for metric in every if not metric.told}
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

        It is that one, or the first where it is of whole outputs: selection keeps predictions only.

        Raises:
            KDError: `metric-unknown`.
        """
        metric = self.find_metric(name)
        return self.metric if metric.needs_outputs else metric

    def scores(self, predicted: Sequence[Any] | Floats, true: Sequence[float]) -> dict[str, float]:
        """Every metric of predictions by name."""
        errors = self.errors(predicted, true)
        return {metric.name: metric(errors) for metric in self.metrics}

    def unit_of(self, metric: Metric) -> str:
        """The unit of a metric: the predictions', and "1" for a rate."""
        return "1" if metric.points else self.unit

    def facts(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """What a report and a bundle must know of the task, as JSON values."""
        return {
            "kind": self.like,
            "name": self.kind,
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
        """A batch's output [N, ...] as one number an image, float64 [N]; or `records`, [N, W]."""

    def within(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """A batch's output [N, ...] without what a map [N, C, h, w] says of the padding."""
        return output * frame.inside(*output.shape[2:]) if self.is_dense else output

    def answer(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """What one image's output says of a photo without annotations, for `describe`."""
        return self.within(output, frame)

    def drawn_truth(self, photo: Photo, frame: Frame) -> NDArray[Any] | None:
        """What a report draws of a photo's annotations as `drawn` of an output, if anything."""
        return None

    def curves(
        self, errors: Mapping[str, Floats], classes: Sequence[str] | None
    ) -> list[dict[str, Any]]:
        """Rows of a report's precision-recall curves: `class`, `index`, precisions by network."""
        return []

    def tables(
        self, errors: Mapping[str, Floats], classes: Sequence[str] | None
    ) -> Sequence[Mapping[str, Any]]:
        """A report's further tables: `title`, `note`, `heads`, and `rows` of text and numbers."""
        return []

    def settings(self) -> dict[str, Any]:
        """What a bundle must know to make answers of outputs, beside the kind; as JSON values."""
        return {}

    def with_settings(self, settings: Mapping[str, Any]) -> "Task":
        """The task of a bundle, whose settings these are.

        Raises:
            ValueError: they are none of its.
        """
        return self

    def with_code(self, given: Callable[..., Any]) -> "Task":
        """The task of a bundle whose own code this is: a function, or a class of tasks.

        Raises:
            KDError: `task-invalid`.
        """
        return _of_class(given, "the bundle's code")

    def errors(self, predicted: Sequence[Any] | Floats, true: Sequence[float] | Floats) -> Floats:
        """One error an image, float64 [N]; here signed differences."""
        return np.subtract(predicted, true, dtype=np.float64)

    def told(self, output: NDArray[Any], frame: Frame) -> list[Floats]:
        """What one image's output [1, ...] says of it, in parts [1, k], to tell images apart by.

        Whether the image is annotated makes no difference, nor does its size make one to k.
        """
        return described(self.within(output, frame))

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

    def photo_groups(self, photos: Sequence[Photo], classes: Sequence[str] | None) -> list[Stratum]:
        """`groups` of annotated images; of a task of records they may overlap."""
        return self.groups(np.array([self.truth(photo) for photo in photos], np.float64), classes)

    def parts_of(
        self, true: Floats, errors: Floats, classes: Sequence[str] | None
    ) -> list[Stratum]:
        """`groups` of images whose errors are known, of whichever network."""
        return self.groups(true, classes)

    def metric_of(self, metric: Metric, about: Mapping[str, Any]) -> Metric:
        """The metric as one of `parts_of` is judged by it."""
        return metric

    def drawn(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """What a report draws of a map [1, C, h, w]: float32 [h, w], or uint8 indices of classes.

        Over the whole input; 0, or `masks.IGNORED`, in the padding.
        """
        return np.asarray(output[0, 0] * frame.inside(*output.shape[2:]), np.float32)

    def map_errors(self, output: NDArray[Any], photo: Photo, frame: Frame) -> Floats:
        """The errors of what `within` gave of one image by each of `map_metrics`, float64 [M]."""
        return np.zeros(0)

    def outputs_of(self, shape: tuple[int, ...]) -> int:
        """How many outputs a label may be of, where the network's output has this shape."""
        return shape[1]

    def has_label_loss(self, shape: tuple[int, ...]) -> bool:
        """Whether a network whose output has this shape can be trained on labels alone."""
        return True

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

    def constant_scores(
        self, train: Sequence[float], predicted: Sequence[Any] | Floats, true: Sequence[float]
    ) -> dict[str, float]:
        """Every metric of the best constant prediction, beside what a network predicted."""
        return self.scores([self.constant(train)] * len(true), true)

    def check_photo(self, photo: Photo, outputs: int) -> None:
        """Refuse annotations of an image, beside its label, that do not fit so many outputs.

        Raises:
            KDError: what is wrong with them.
        """
        return  # a label is all there is

    @abstractmethod
    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with an output of this shape for one image, or None."""


def find_task(kind: str) -> Task:
    """The task of `[task] kind` or of a bundle's manifest; not one in a file next to a spec.

    Raises:
        KDError: `task-unknown`, or those of `plugins.find`.
    """
    import kdcompile.tasks.builtin
    import kdcompile.tasks.detection.task
    import kdcompile.tasks.generic
    import kdcompile.tasks.segmentation  # noqa: F401  a cache key covers all of them

    return _made(plugins.find("tasks", str(kind), Task, "[task] kind, or a bundle's manifest.json"))


def task_of(spec: Spec) -> Task:
    """The task of a spec: of a name, or of a class in a file next to it (`task.py:Depth`).

    Raises:
        KDError: `task-unknown`, `task-invalid`, or those of `load_factory`.
    """
    kind = spec.task.kind
    if ":" not in kind:
        return find_task(kind).judged_by(spec)
    return _of_class(load_factory(kind, spec.folder), f"{spec.path} [task] kind, {kind}")


def _of_class(found: Any, where: str) -> Task:
    """An instance of a class of tasks that is the user's."""
    if isinstance(found, type) and issubclass(found, Task):
        return _make(found)
    raise KDError(
        "task-invalid",
        f"{getattr(found, '__name__', found)} is no class that derives from"
        " kdcompile.tasks.task.Task",
        where=where,
        fix="name a class that derives from Task; docs/plugins.md has an example",
    )


def _make(kind: type[Task]) -> Task:
    with users_code(
        "task-invalid", f"task {kind.__name__} cannot be made", f"{kind.__module__}", "correct it"
    ):
        return kind()


_made = cache(_make)  # the one instance of a registered task


def preprocess_of(spec: Spec) -> Preprocess:
    """The preprocessing that a spec describes; padding is mirrored for maps over the image."""
    ports = ports_of(spec)
    if ports is not None and spec.export.inputs:
        return RowPreprocess.of(ports)
    low, _, high = spec.export.profile
    sizes = (low[2], low[3]), (high[2], high[3])
    padding: Padding = "mirror" if task_of(spec).is_dense else "mean"
    found = Preprocess(low[1], tuple(spec.data.mean), tuple(spec.data.std), *sizes, padding)
    return found if ports is None else RowPreprocess.of(ports, found)


def ports_of(spec: Spec) -> Ports | None:
    """The inputs of a network whose samples are rows: those named, or the image; else None.

    Raises:
        KDError: `task-inputs`, or those of `task_of`.
    """
    rows, named = task_of(spec).takes_rows, spec.export.inputs
    if not rows and not named:
        return None
    if not rows or spec.export.is_dynamic:
        raise KDError(
            "task-inputs",
            f"{spec.task.kind} takes one image" if not rows else "its inputs have a range of sizes",
            where="[export]",
            fix="give export.shape alone, as [1, C, H, W]",
        )
    if not named:
        return Ports((Port(IMAGE, tuple(spec.export.profile[1]), "float32"),))
    return Ports(tuple(Port(n, tuple(one.shape), one.dtype) for n, one in named.items()))
