"""Progress events: what the callback of a Python caller receives while stages run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from kdcompile.core.disk import disk_error
from kdcompile.core.user_code import users_code


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
    """A value of a training after `step` steps: `loss`, or `val_` and the name of a metric."""

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
