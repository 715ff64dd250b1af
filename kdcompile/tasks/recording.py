"""Base class of tasks whose truth is not one number: they have records of images."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from kdcompile.core import plugins
from kdcompile.data.coreset import described
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.records import Recorded
from kdcompile.tasks.strata import Stratum
from kdcompile.tasks.task import Floats, Task


class Recording(Task):
    """A task that says of an image's output, beside the truth, a row: its error and its record.

    `within` gives that row for a photo with annotations, and the output itself for any other; so
    outputs of `within` are rows wherever accuracy is asked for. The rows are the predictions, and
    the truth of an image is the error 0.

    examples: a sentence of the report on what an image's own error is.
    """

    records: ClassVar[bool] = True

    @property
    def is_own_code(self) -> bool:
        """Whether code of the user's judges outputs, which no bundle runs unasked."""
        return plugins.plugin("tasks", self.kind) is None

    examples: ClassVar[str] = ""

    @abstractmethod
    def record(self, output: NDArray[Any], photo: Photo, frame: Frame) -> Floats:
        """The row float64 [1 + W] of one image: its own error, at least 0, and its record.

        Args:
            output: of the network, [1, ...].
            photo: with its annotations.
            frame: where it lies in the network's input.

        Raises:
            KDError: an annotation is wrong, or does not fit the output.
        """

    @abstractmethod
    def is_annotated(self, photo: Photo) -> bool:
        """Whether `record` can be asked for."""

    def truth(self, photo: Photo) -> float:
        """The error of a right answer."""
        return 0.0

    def within(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """One image's row [1, 1 + W]; its output where it has no annotation."""
        if frame.of is None or not self.is_annotated(frame.of):
            return output
        return self.record(output, frame.of, frame)[None]

    def predictions(self, output: NDArray[Any]) -> Floats:
        """The rows that `within` gave."""
        return np.asarray(output, np.float64)

    def errors(self, predicted: Sequence[Any] | Floats, true: Sequence[float] | Floats) -> Floats:
        """The images' own errors, with their records."""
        return Recorded.of(predicted)

    def told(self, output: NDArray[Any], frame: Frame) -> list[Floats]:
        """What `described` says of the whole output: a task that knows more says it."""
        return described(output)

    def difficulty(self, output: NDArray[Any], true: float) -> float:
        """The image's own error."""
        return float(output[0, 0])

    def name_of_class(self, index: int, classes: Sequence[str] | None) -> str:
        """The name of a class, or its index where classes have none."""
        return classes[index] if classes and index < len(classes) else str(index)

    def groups(self, true: Floats, classes: Sequence[str] | None) -> list[Stratum]:
        """None by the truth alone; `parts_of` may know some by the records."""
        return []

    def constant(self, train: Sequence[float]) -> float:
        """Not known: a prediction is a row."""
        return float("nan")

    def facts(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """With `of_records`: what a prediction is, is the image's own error; and `examples`."""
        own = {"of_records": True} | ({"examples": self.examples} if self.examples else {})
        return super().facts(classes) | own

    def constant_scores(
        self, train: Sequence[float], predicted: Sequence[Any] | Floats, true: Sequence[float]
    ) -> dict[str, float]:
        """Not known by the labels alone."""
        return {metric.name: float("nan") for metric in self.metrics}
