"""The built-in tasks: counting, classification and regression."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.core.plugins import register
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.metric import GAMES, LEVELS, MAE, RMSE, TOP1
from kdcompile.tasks.strata import Stratum, by_class
from kdcompile.tasks.task import Floats, Task


@register("tasks", "counting")
class Counting(Task):
    """Points to be counted by a density map [N, 1, h, w], whose sum is the count."""

    kind = like = "counting"
    output, unit = "density", "count"
    metrics, map_metrics = (MAE, RMSE), GAMES
    is_dense, parts = True, "by_density"
    output_fit = "scale"  # an offset of each cell would put people where there are none

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


@register("tasks", "classification")
class Classification(Task):
    """One class an image, by logits [N, K]."""

    kind = like = "classification"
    output, unit = "logits", "class"
    metrics, parts, has_classes = (TOP1,), "by_class", True
    output_fit = "temperature"

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


@register("tasks", "regression")
class Regression(Task):
    """One number an image, by an output [N, 1]."""

    kind = like = "regression"
    output, unit = "value", "1"
    metrics, parts = (MAE, RMSE), "by_value"
    output_fit = "affine"

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


def game_errors(
    density: NDArray[Any],
    points: NDArray[Any],
    frame: Frame,
    levels: Sequence[int] = LEVELS,
) -> Floats:
    """GAME of one image at each level, float64 [levels].

    Args:
        density: [h, w], count per cell of the map; it covers the whole input plane, and is 0 in
            the padding.
        points: [P, 2], x and y in pixels of the photo.
        frame: where the photo lies in the plane.
        levels: each cuts the photo, and not the padding, into 4^level cells.
    """
    side = 2 ** max(levels)
    gap = predicted_cells(density, frame, side) - true_cells(points, frame, side)
    found = []
    for level in levels:
        cells, within = 2**level, side // 2**level
        coarse = gap.reshape(cells, within, cells, within).sum((1, 3))
        found.append(np.abs(coarse).sum())
    return np.array(found)


def predicted_cells(density: NDArray[Any], frame: Frame, side: int) -> Floats:
    """The density's count in each of side x side cells of the photo, float64 [side, side].

    A map's cell that lies across a border is shared by area. The last ones take all that is left,
    so that the sum is the whole count of a map that is 0 in the padding (`Task.within`).
    """
    rows, columns = (
        _shares(size, side, seen / plane)
        for size, seen, plane in zip(density.shape, frame.seen, frame.plane, strict=True)
    )
    return np.asarray(rows @ density.astype(np.float64) @ columns.T)


def true_cells(points: NDArray[Any], frame: Frame, side: int) -> Floats:
    """The points in each of side x side cells of the photo, float64 [side, side].

    A point on or beyond the border belongs to the nearest cell.
    """
    height, width = frame.photo
    found = np.zeros((side, side))
    places = np.floor(points.astype(np.float64) / (width, height) * side)
    columns, rows = np.clip(places, 0, side - 1).astype(np.int64).T
    np.add.at(found, (rows, columns), 1.0)
    return found


def _shares(size: int, side: int, covered: float) -> Floats:
    """How much of each of a map's `size` cells lies in each of `side` parts, [side, size].

    Args:
        size: cells of the map along one axis.
        side: parts of the photo along it.
        covered: the share of the axis that the photo fills.
    """
    edges = np.linspace(0, covered * size, side + 1)
    edges[-1] = size
    cells = np.arange(size)
    overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return np.asarray(np.clip(overlap, 0, 1))
