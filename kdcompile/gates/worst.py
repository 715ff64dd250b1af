"""The test photos that the student has worst, for the report's list."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.gates.context import Floats, Outcomes
from kdcompile.tasks.task import Task

MOST = 10


def worst_rows(
    task: Task, outcomes: Outcomes, difficulty: Floats, classes: Sequence[str] | None
) -> list[dict[str, Any]]:
    """At most `MOST` photos, the worst first, as JSON values.

    A row has the photo's `name`; what is `true`, and what the `student` and the `teacher` predict,
    as a report shows them; the student's `difficulty`; and `grew`, by how much its absolute error
    is larger than the teacher's (of classes 1 where the teacher alone is right, -1 where the
    student alone is, else 0).

    Args:
        task: what is predicted.
        outcomes: the predictions.
        difficulty: how far the student is from the truth on each photo, [N].
        classes: the names that the data has for them.
    """
    order: NDArray[np.int64] = np.argsort(-difficulty, kind="stable")[:MOST]
    errors = {
        who: np.abs(task.errors(getattr(outcomes, who), outcomes.true))
        for who in ("teacher", "student")
    }
    grew = errors["student"] - errors["teacher"]
    return [
        {
            "name": outcomes.names[index],
            **{
                who: task.name_of(float(getattr(outcomes, who)[index]), classes)
                for who in ("true", "student", "teacher")
            },
            "difficulty": float(difficulty[index]),
            "grew": float(grew[index]),
        }
        for index in order
    ]
