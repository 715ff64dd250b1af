"""A build that is tracked: its events and its report as calls of the trackers.

Nothing of it is in a key or an artifact, and a tracker that fails is left out with a warning: a
build is the same with and without.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kdcompile.core.progress import Event, Metric, OnProgress, StageFinished
from kdcompile.core.report import Measurement, Report
from kdcompile.trackers.tracker import Tracker, Trackers, opened

log = logging.getLogger("kdcompile")
FILES = ("report.html", "report.md", "report.json", "manifest.json", "metrics.jsonl")
SIZE = "size"  # a measurement of a file, whose mode is the name of the file
VALIDATED = "val_"  # begins the name of a validation metric


class Tracking:
    """The trackers of one build, which ends with the block."""

    def __init__(self, track: Trackers, on_progress: OnProgress | None) -> None:
        """Open the trackers; `on_progress` is called with each event as well.

        Raises:
            KDError: those of `opened`.
        """
        self._opened = opened(track)
        self._live: list[tuple[str, Tracker]] = []  # those whose run is open
        self._callback = on_progress
        self._step, self._row = 0, dict[str, float]()
        self._seconds: dict[str, float] = {}
        self._facts: dict[str, str] = {}

    def start(self, name: str, settings: Mapping[str, Any]) -> None:
        """Begin a run of each tracker; `settings` may be nested."""
        flat = dict(flattened(settings))
        self._live = list(self._opened)
        self._each(lambda tracker: tracker.start(name, flat))

    def note(self, event: Event) -> None:
        """Report a metric of the training with the others of its step."""
        if isinstance(event, Metric):
            if event.step != self._step:
                self._flush()
            self._step = event.step
            self._row[curve(event.name)] = event.value
        elif isinstance(event, StageFinished):
            self._flush()
            self._seconds[f"seconds/{event.stage}"] = event.seconds
        if self._callback is not None:
            self._callback(event)

    def report(self, report: Report, bundle: Path) -> None:
        """Report the results of a build, and the files of its bundle that tell of them."""
        self._flush()
        found = {**results(report.measurements), **self._seconds}
        self._each(lambda tracker: tracker.metrics(found, None))
        for path in filter(Path.is_file, (bundle / name for name in FILES)):
            self._each(partial(_keep, path))
        self._facts = {
            "verdict": report.verdict,
            "target": report.target,
            **{
                f"gate.{one.name}": f"{one.verdict} ({one.evidence}): {one.observed}, "
                f"threshold {one.threshold}"
                for one in report.gates
            },
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._flush()
        self._each(lambda tracker: tracker.finish(kind is None, self._facts))

    def _flush(self) -> None:
        if self._row:
            row, step, self._row = self._row, self._step, {}
            self._each(lambda tracker: tracker.metrics(row, step))

    def _each(self, call: Callable[[Tracker], object]) -> None:
        """Call every tracker that works; what they print goes to standard error."""
        for one in list(self._live):
            name, tracker = one
            try:
                with redirect_stdout(sys.stderr):
                    call(tracker)
            except Exception as error:
                self._live.remove(one)
                reason = (str(error) or type(error).__name__).splitlines()[0]
                log.warning(
                    "tracking: %s failed and is left out of the rest of this build: %s",
                    name, reason,
                )  # fmt: skip


def _keep(path: Path, tracker: Tracker) -> None:
    tracker.artifact(path)


def curve(name: str) -> str:
    """The name of a metric of a training in a tracker: `train/loss`, `val/mae`."""
    return f"val/{name[len(VALIDATED) :]}" if name.startswith(VALIDATED) else f"train/{name}"


def results(measurements: Sequence[Measurement]) -> dict[str, float]:
    """The numbers of a report as `EVIDENCE/NAME PRECISION UNIT`, and the bounds of intervals.

    Of several with one name, as the teacher's latency next to each precision, the first is taken;
    a size has the name of its file.
    """
    found: dict[str, float] = {}
    for one in measurements:
        what = one.mode if one.name == SIZE else one.precision
        unit = "" if one.unit == "1" else one.unit
        name = f"{one.evidence}/" + " ".join(part for part in (one.name, what, unit) if part)
        bounds = {f"{name} low": one.low, f"{name} high": one.high}
        if name not in found:
            found[name] = one.value
            found |= {key: bound for key, bound in bounds.items() if bound is not None}
    return found


def flattened(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as `section.field` and text, without what is None or empty."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{name}.")
        elif value not in (None, "", [], ()):
            yield f"{prefix}{name}", str(value)
