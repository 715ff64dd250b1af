"""Progress of long work on standard error: a bar on a terminal, plain lines elsewhere."""

import logging
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from kdcompile.core.disk import disk_error
from kdcompile.core.logs import is_quiet
from kdcompile.core.user_code import users_code

log = logging.getLogger("kdcompile")
LINE_SECONDS = 10.0
NARROW = 120  # columns of a terminal; one that has less gets the short bar
BAR, SHORT_BAR = 20, 8
Item = TypeVar("Item")


class Progress:
    """Shows the stage, what is done of it, the rate, the time that is left and a note.

    One bar is drawn at a time: what is inside another one's work is silent on a terminal.
    """

    _drawn = False

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        done: int = 0,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with `done` of `total`, which an earlier run did; `unit` is their name.

        `quiet`: nothing at all is shown.
        """
        self._stage, self._total, self._unit, self._clock = stage, total, unit, clock
        self.done = self._before = done
        self._silent, self._quiet = quiet, quiet or is_quiet()
        self._began = self._told = clock()
        self._bar = None
        if sys.stderr.isatty() and not self._quiet and not Progress._drawn:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar
            from rich.table import Column

            # what is printed goes above the bar, but into a file or a pipe as it is
            console, above = Console(stderr=True), sys.stdout.isatty()
            wide = BAR if console.width >= NARROW else SHORT_BAR
            name = TextColumn(stage, table_column=Column(no_wrap=True, min_width=len(stage)))
            columns = (name, BarColumn(wide), TextColumn("{task.description}", markup=False))
            self._room = console.width - len(stage) - wide - len("  ")
            self._bar = Bar(*columns, console=console, redirect_stdout=above)
            told = self._words("", self._room)
            self._task = self._bar.add_task(told, total=total, completed=done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            Progress._drawn = True
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
            Progress._drawn = False

    def show(self, done: int, note: str = "", important: bool = False) -> None:
        """So much is done; an `important` note has a line even where the last one is new."""
        self.done = done
        if not self._silent:
            emit(StepDone(self._stage, done, self._total, self._unit))
        if self._quiet:
            return
        if self._bar is not None:
            told = self._words(note, self._room)
            self._bar.update(self._task, completed=done, description=told)
        elif not Progress._drawn and (important or self._clock() - self._told >= LINE_SECONDS):
            self._told = self._clock()
            log.info("%s: %s", self._stage, self._words(note))

    def _words(self, note: str, room: float = math.inf) -> str:
        """`40 of 100 steps, 12.5 a second, 5 s left, ` and the note; what has no room is left out.

        Whole parts go, the last first: half a number would be read as another one.
        """
        parts = [f"{self.done} of {self._total} {self._unit}"]
        passed, made = self._clock() - self._began, self.done - self._before
        if made > 0 and passed > 0:
            rate = made / passed
            parts.append(
                f"{_digits(rate)} a second" if rate >= 1 else f"{_digits(1 / rate)} s each"
            )
            if self.done < self._total:
                parts.append(f"{duration((self._total - self.done) / rate)} left")
        parts += note.split(", ") if note else []
        while len(parts) > 1 and len(", ".join(parts)) > room:
            parts.pop()
        return ", ".join(parts)


def _digits(value: float) -> str:
    """Three digits, or all of a larger whole number: never an exponent."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """Seconds in words: `5 s`, `3 min 5 s`, `2 h 3 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def counted(items: Iterable[Item], total: int, stage: str, unit: str) -> Iterator[Item]:
    """The items, each shown as done once the next one is asked for."""
    with Progress(stage, total, unit) as progress:
        for number, item in enumerate(items, 1):
            yield item
            progress.show(number)


@dataclass(frozen=True)
class StageHit:
    """A stage whose artifact is in the store already, under `key`."""

    stage: str
    key: str


@dataclass(frozen=True)
class StageStarted:
    """A stage begins to run; `why` says, a sentence each, what makes it run."""

    stage: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class StageFinished:
    """A stage has run, in so many seconds, and its artifact is in the store under `key`."""

    stage: str
    key: str
    seconds: float


@dataclass(frozen=True)
class StepDone:
    """`done` of `total` units (`steps`, `test images`, ...) of a stage are finished."""

    stage: str
    done: int
    total: int
    unit: str


@dataclass(frozen=True)
class Metric:
    """A value of a training after `step` steps: `loss`, `loss_` and the name of a term, or
    `val_` and the name of a metric.
    """

    stage: str
    step: int
    name: str
    value: float


Event = StageHit | StageStarted | StageFinished | StepDone | Metric
OnProgress = Callable[[Event], object]
_callback: ContextVar[OnProgress | None] = ContextVar("_callback", default=None)


@contextmanager
def reporting_to(callback: OnProgress | None) -> Iterator[None]:
    """Call `callback` with every event of the block; None leaves the outer callback in charge."""
    token = _callback.set(callback or _callback.get())
    try:
        yield
    finally:
        _callback.reset(token)


@contextmanager
def working(on_progress: OnProgress | None) -> Iterator[list[str]]:
    """Report the events of a verb; an error of the disk becomes a `KDError`.

    Yields:
        The names of the stages that have run, which grows.
    """
    ran: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, StageStarted):
            ran.append(event.stage)
        if on_progress is not None:
            on_progress(event)

    try:
        with reporting_to(note):
            yield ran
    except Exception as error:
        found = disk_error(error)
        if found is None:
            raise
        raise found from error


def emit(event: Event) -> None:
    """Hand an event to the callback, if there is one.

    Raises:
        KDError: `callback-failed`, the callback raised an exception.
    """
    callback = _callback.get()
    if callback is not None:
        fix = "correct the function that is passed as on_progress"
        with users_code("callback-failed", "the progress callback failed", "on_progress", fix):
            callback(event)
