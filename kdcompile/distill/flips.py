"""Count the validation images that a refresh of a deployed student made worse and better."""

from collections.abc import Sequence
from typing import Any

from kdcompile.data.photo import Photo
from kdcompile.distill.state import State
from kdcompile.tasks.reference import changes
from kdcompile.tasks.task import Task

TOLERANCE = 1.0  # of the deployed student's mean absolute error, as gates.flips has it


def flips(task: Task, state: State, val: Sequence[Photo]) -> dict[str, Any] | None:
    """Photos that the trained student has worse and better than the one it started from.

    Args:
        task: of the photos.
        state: of a training that is done.
        val: the validation photos.

    Returns:
        JSON values; None where the start's predictions were no numbers.
    """
    if not state.initial:
        return None
    true = [task.truth(photo) for photo in val]
    before, after = (task.errors(found, true) for found in (state.initial, state.predicted))
    found = changes(task, before, after, TOLERANCE)
    worse, better = int(found.worse.sum()), int(found.better.sum())
    return {
        "beside": "the student as it was deployed",
        "validation_photos": len(true),
        "worse": worse,
        "better": better,
        "share_worse": worse / len(true),
        "worse_is": found.rule,
    }
