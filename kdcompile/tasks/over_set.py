"""A user's metric of a whole set: one number for the outputs of many samples together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.core.user_code import users_code
from kdcompile.tasks.metric import Metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]
    Floats = NDArray[np.float64]

SET_SCORE = "set_score"
DRAWS = 499  # of the set, for an interval: each costs two calls of the user's function
FIX = "return one number, 0 at best, from (outputs, samples), lists of arrays by name"


class OverSet:
    """Keeps the outputs of samples, so that the metric of any of them together can be asked for.

    The error of one sample is then no error but its place among those that are kept: `metric` of
    some places is what the function says of the outputs there.

    Args:
        score: `score(outputs, samples)`, both lists of arrays by name.
        name: that the spec has for it.
    """

    def __init__(
        self, score: Callable[[Sequence[Arrays], Sequence[Arrays]], float], name: str
    ) -> None:
        self._score, self._name = score, name
        self._kept: list[tuple[Arrays, Arrays]] = []
        self.metric = Metric(SET_SCORE, self._of, whole=True, draws=DRAWS)

    def keep(self, outputs: Arrays, sample: Arrays) -> float:
        """The place of one sample's outputs."""
        self._kept.append((dict(outputs), dict(sample)))
        return float(len(self._kept) - 1)

    def _of(self, places: Floats, axis: int = -1) -> Any:
        return np.apply_along_axis(self._one, axis, places)

    def _one(self, places: Floats) -> float:
        """The function's number for the samples at some places.

        Raises:
            KDError: `task-metric`, it fails, gives no number or one below 0.
        """
        kept = [self._kept[int(place)] for place in places]
        with users_code("task-metric", f"{self._name} fails", "[task] metric", FIX):
            found = float(self._score([one for one, _ in kept], [own for _, own in kept]))
        if found < 0:
            raise KDError(
                "task-metric", f"{self._name} gives {found:.4g}, below 0", "[task] metric", FIX
            )
        return found
