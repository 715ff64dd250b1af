"""What a reader of the report should be warned of."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdcompile.data.metric import Metric

LOSS_SHARE = 0.05


def findings(
    metric: Metric,
    rows: Sequence[Mapping[str, Any]],
    best: float,
    teacher: float | None,
    train: float,
) -> list[str]:
    """Warnings in words: overfitting, a teacher that is worse than its student.

    Args:
        metric: that selected the student.
        rows: of `metrics.jsonl`.
        best: the student's best validation value.
        teacher: the teacher's, if known.
        train: the best student's on training images.
    """
    found = []
    name = f"val_{metric.name}"
    curve = [(row["step"], row[name]) for row in rows if name in row]
    worse = metric.worse_by(curve[-1][1], best) if curve else 0.0
    if worse > LOSS_SHARE * abs(best) and _fell(rows):
        found.append(
            f"overfitting: validation {metric.name} went from {best:.4g} to {curve[-1][1]:.4g} "
            f"while the training loss fell; the best weights are kept ({train:.4g} on training "
            "images)"
        )
    if teacher is not None and metric.is_better(best, teacher):
        found.append(
            f"the teacher is worse than its student: validation {metric.name} {teacher:.4g} "
            f"against {best:.4g}; a better teacher, or recipe none, may give more"
        )
    return found


def _fell(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the hard loss of the last rows is below that of the middle of the training."""
    losses = [row["terms"]["hard"] for row in rows if "hard" in row.get("terms", {})]
    half = len(losses) // 2
    quarter = max(1, len(losses) // 4)
    return half > 0 and sum(losses[-quarter:]) <= sum(losses[half : half + quarter])
