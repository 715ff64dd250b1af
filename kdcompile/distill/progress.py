"""Training progress: steps, rate, time left, loss and the latest validation metric."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from kdcompile.core.progress import Metric, Progress, emit


class TrainingProgress(Progress):
    """Shows rows of metrics; each validation has a line of its own where there is no terminal."""

    def __init__(
        self,
        total: int,
        done: int,
        metric: str,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show `metric`, as `val_METRIC` of the rows; nothing at all when `quiet`."""
        super().__init__("distill", total, "steps", done, quiet, clock)
        self._name, self._metric = metric, ""

    def show_row(self, done: int, row: Mapping[str, Any]) -> None:
        """A row of metrics after `done` steps."""
        validated = row.get(f"val_{self._name}")
        if validated is not None:
            self._metric = f", val {self._name} {validated:.4g}"
        note = f"stage {row['stage']}, loss {row['loss']:.4g}{self._metric}"
        self.show(done, note, important=validated is not None)
        for name, value in row.items():
            if not self._silent and (name == "loss" or name.startswith("val_")):
                emit(Metric("distill", done, name, float(value)))
