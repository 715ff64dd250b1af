"""A task of a user's file that is not here, as a report tells of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core import plugins
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.recording import Recording
from kdcompile.tasks.task import Floats, Task, find_task


class Reported(Recording):
    """Its names and metrics, without what would judge an output: that is in the user's file.

    A board's latency, parity and size are judged without it; accuracy stays as it was reported.
    """

    like, parts = "generic", "by_class"

    def __init__(self, facts: Mapping[str, Any]) -> None:
        """By `Task.facts` of the report."""
        told = vars(self)
        told |= {name: str(facts[name]) for name in ("output", "unit")}
        told["kind"] = str(facts["name"])
        rate = bool(facts["is_rate"])
        self.metrics = tuple(
            Metric(str(name), _unknown, points=rate, records=True) for name in facts["metrics"]
        )

    def is_annotated(self, photo: Photo) -> bool:
        """None is, for a task that is not here."""
        return False

    def record(self, output: NDArray[Any], photo: Photo, frame: Frame) -> Floats:
        """Not known, as `is_annotated` says."""
        return np.full(1, np.nan)

    def describe(self, output: NDArray[Any], classes: Sequence[str] | None) -> dict[str, Any]:
        """Nothing in words."""
        return {}

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Of any shape."""
        return None


def _unknown(errors: Floats, axis: int = -1) -> Any:
    return np.full(errors.shape[:-1], np.nan)


def reported_task(facts: Mapping[str, Any]) -> Task:
    """The task of a report: a known one by its name, else what the report says of it.

    Raises:
        KDError: `task-unknown`, it is not here and images are to be judged by it.
    """
    name = str(facts.get("name", facts["kind"]))
    if facts.get("of_records") and plugins.plugin("tasks", name) is None:
        return Reported(facts)
    return find_task(name)
