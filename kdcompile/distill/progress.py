"""Training progress on standard error: a bar on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

log = logging.getLogger("kdcompile")
LINE_SECONDS = 15.0


class Progress:
    """Shows the loss and the latest validation metric."""

    def __init__(self, total: int, done: int, metric: str, quiet: bool = False) -> None:
        """Show `metric`, as `val_METRIC` of the rows; nothing at all when `quiet`."""
        self._total, self._name, self._quiet = total, metric, quiet
        self._metric, self._last_line = "", time.monotonic()
        self._bar: Bar | None = None
        if sys.stderr.isatty() and not quiet:
            self._bar = Bar(
                TextColumn("distill"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("distill", total=total, completed=done, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, done: int, row: dict[str, Any]) -> None:
        """A row of metrics after `done` steps."""
        if self._quiet:
            return
        validated = f"val_{self._name}" in row
        if validated:
            self._metric = f"val {self._name} {row[f'val_{self._name}']:.4g}"
        note = f"loss {row['loss']:.4g} {self._metric}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif validated or time.monotonic() - self._last_line > LINE_SECONDS:
            log.info("distill: step %d/%d %s", done, self._total, note)
            self._last_line = time.monotonic()
