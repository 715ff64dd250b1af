"""The protocol of an experiment tracker, and those that a caller names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from kdcompile.core import plugins


@runtime_checkable
class Tracker(Protocol):
    """Where one build is written: a run of a server, a folder of event files, or the like.

    A plug-in of the group `kdcompile.trackers` is a class of this protocol whose constructor takes
    what follows the name in `--track NAME:WHERE`, a string that may be empty. The constructor
    raises a `KDError` where the tracker cannot work here at all; an exception of the other methods
    is a warning, after which the build goes on without the tracker.
    """

    def start(self, name: str, settings: Mapping[str, str]) -> None:
        """Begin the run of a build.

        Args:
            name: of the build and its target.
            settings: the fields of the spec, by their names with dots.
        """

    def metrics(self, values: Mapping[str, float], step: int | None) -> None:
        """Numbers after `step` training steps, or None for results of the whole build.

        A name has groups, as `train/loss`; a value may be NaN.
        """

    def artifact(self, path: Path) -> None:
        """A file to keep with the run, which may be gone later."""

    def finish(self, succeeded: bool, facts: Mapping[str, str]) -> None:
        """End the run.

        Args:
            succeeded: whether the build has ended, with whatever verdict.
            facts: the verdict and those of the gates, in words; empty where it has not ended.
        """


AnyTracker = str | Tracker
Trackers = AnyTracker | Sequence[AnyTracker]


def opened(track: Trackers) -> list[tuple[str, Tracker]]:
    """Trackers by what names them.

    Args:
        track: `NAME` or `NAME:WHERE` of a plug-in, a tracker, or several of these.

    Raises:
        KDError: `tracker-unknown`, those of `plugins.find`, and of the tracker.
        ToolMissingError: its library is not installed.
    """
    several = [track] if isinstance(track, str | Tracker) else track
    return [_opened(one) for one in several]


def _opened(one: AnyTracker) -> tuple[str, Tracker]:
    if not isinstance(one, str):
        return type(one).__name__, one
    name, _, where = one.partition(":")
    kind = plugins.find("trackers", name, Tracker, "the tracker")
    return name, kind(where)
