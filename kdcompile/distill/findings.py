"""Findings of the report after a training: warnings, and images that a refresh changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdcompile.data.photo import Photo
from kdcompile.distill.state import State
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.reference import changes
from kdcompile.tasks.task import Task

LOSS_SHARE = 0.05
TOLERANCE = 1.0  # of the deployed student's mean absolute error, as gates.flips has it


def findings(
    metric: Metric,
    rows: Sequence[Mapping[str, Any]],
    best: float,
    teacher: float | None,
    train: float,
) -> list[str]:
    """Warnings in words: overfitting, a rate that is too high, a start that nothing improved on.

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
    later = [value for step, value in curve if step > 0]
    at_start = bool(later) and not any(metric.is_better(value, curve[0][1]) for value in later)
    worse = metric.worse_by(curve[-1][1], best) if curve else 0.0
    if worse > LOSS_SHARE * abs(best):
        went = f"validation {metric.name} went from {best:.4g} to {curve[-1][1]:.4g}"
        if at_start and not _fell_from_the_start(rows):
            found.append(
                f"the learning rate is too high for this start: {went}, and the training loss did "
                f"not fall ({_losses_in_words(rows)}); lower distill.lr (now {_rate(rows):.3g})"
            )
        elif _fell(rows):
            found.append(
                f"overfitting: {went} while the training loss fell; the best weights are kept "
                f"({train:.4g} on training images)"
            )
    if at_start:
        nearest = min(later, key=lambda value: metric.worse_by(value, 0.0))
        found.append(
            f"the training did not improve on its start: validation {metric.name} {best:.4g} "
            f"before the first step, at best {nearest:.4g} after it; the student is the start, "
            "untrained"
        )
    if teacher is not None and metric.is_better(best, teacher):
        found.append(
            f"the teacher is worse than its student: validation {metric.name} {teacher:.4g} "
            f"against {best:.4g}; a better teacher, or recipe none, may give more"
        )
    return found


def start_findings(metric: Metric, inherited: Mapping[str, Any] | None) -> list[str]:
    """Warnings about where the student started, in words.

    Args:
        metric: that selects the student.
        inherited: what inheriting found; None for other starts, which need not be good.
    """
    judged = (inherited or {}).get("validation")
    if judged is None or not metric.is_better(judged["constant"], judged["start"]):
        return []
    tried = len((inherited or {}).get("attempts", [])) or 1
    return [
        f"the inherited start is worse than a constant: validation {metric.name} "
        f"{judged['start']:.4g} against {judged['constant']:.4g} ({judged['photos']} photos, the "
        f"best of {tried} ways to inherit); more student.crops or a wider student may start better"
    ]


def _hard(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    return [row["terms"]["hard"] for row in rows if "hard" in row.get("terms", {})]


def _fell(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the hard loss of the last rows is below that of the middle of the training."""
    losses = _hard(rows)
    half = len(losses) // 2
    return half > 0 and _end(losses) <= sum(losses[half:][: _quarter(losses)]) / _quarter(losses)


def _fell_from_the_start(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the hard loss of the last rows is below that of the first step.

    A rate that breaks the start lets the loss jump and fall again, though not below where it was.
    """
    losses = _hard(rows)
    return len(losses) < 2 or _end(losses) < losses[0]


def _quarter(losses: Sequence[float]) -> int:
    return max(1, len(losses) // 4)


def _end(losses: Sequence[float]) -> float:
    """The mean of the last quarter."""
    return sum(losses[-_quarter(losses) :]) / _quarter(losses)


def _losses_in_words(rows: Sequence[Mapping[str, Any]]) -> str:
    losses = _hard(rows)
    return f"{losses[0]:.3g} at the first step, {_end(losses):.3g} at the end"


def _rate(rows: Sequence[Mapping[str, Any]]) -> float:
    """The largest rate that a row names."""
    return max((float(row["lr"]) for row in rows if "lr" in row), default=float("nan"))


def flips(task: Task, state: State, val: Sequence[Photo]) -> dict[str, Any] | None:
    """Photos that the trained student has worse and better than the one it started from.

    Args:
        task: of the photos.
        state: of a training that is done.
        val: the validation photos.

    Returns:
        JSON values; None where the start's predictions were no numbers.
    """
    if not len(state.initial):
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
