"""The difference that two variants may have, by its effect on the task's metric.

A rung may spend a tenth of the accuracy gate's margin. The question is how much random noise on the
predictions costs that much, on photos whose errors are known. With p the predictions and e their
errors, noise of level r makes them

    p + r p z             for a sum or a number (counting, regression); z is standard normal
    logits + r s z        for classes; s is the root mean square of the logits around their mean

and r is raised until the metric is worse by the allowance, on average over draws of z that are the
same for every r. For a rate the share of photos whose class changes is what counts: no metric of
them can move further. Small noise costs an error only in the second order, so the tolerance follows
from how large the network's own errors are: one that errs by a tenth of its counts need not compute
them to a thousandth.

The noise of a rung is measured in the same unit: the root mean square over photos of the change of
the prediction, over that of the predictions; for classes of the logits around their mean.

A task that imitates the teacher has errors e = |S - T| / |T| and no predictions. There noise is of
the outputs, relative to them: in a direction of its own it makes each error sqrt(e^2 + r^2). What a
user's own function gives is known by its values alone, which may change by r of their size. So are
the images' own errors of a task that is judged by records.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdcompile.tasks.metric import MAE, Metric
from kdcompile.tasks.records import Recorded
from kdcompile.tasks.task import Task

Array = NDArray[np.float32]
Floats = NDArray[np.float64]

SHARE = 0.1  # of the gate's margin
FLOOR = 1e-3  # no rung is held closer: float32 sums in another order are all that is left below
DRAWS = 400
STEPS = 40  # of the bisection of r
NO_LIMIT = 1e30  # for a change without bound: JSON has no infinity


@dataclass(frozen=True)
class Tolerance:
    """The largest relative noise of a rung's predictions, and where it is from.

    Args:
        noise: largest root mean square of the change over that of the predictions.
        why: in words.
        n: photos it was derived from.
    """

    noise: float
    why: str
    n: int


def of_numbers(
    task: Task, metric: Metric, share: float, predicted: Floats, true: Floats
) -> Tolerance:
    """For predictions that are numbers: counting and regression.

    Args:
        task: gives the errors.
        metric: that the accuracy gate judges.
        share: its margin, 0.15 for "15%".
        predicted: of the reference, float64 [N].
        true: annotated, float64 [N].
    """
    errors = task.errors(predicted, true)
    value = metric(errors)
    allowed = SHARE * metric.allowance(value, share)
    z = np.random.default_rng(0).standard_normal((DRAWS, len(predicted)))

    def cost(level: float) -> float:
        noisy = metric.of(errors + level * predicted * z, axis=-1)
        return float(np.mean(metric.worse_by(noisy, value)))

    found = _largest(cost, allowed)
    text = f"{metric.name} {metric.text(value)} may move by {metric.difference(allowed)}"
    return Tolerance(max(found, FLOOR), _worded(text, found), len(predicted))


def of_errors(metric: Metric, share: float, errors: Floats) -> Tolerance:
    """For outputs that imitate the teacher's.

    Args:
        metric: that the accuracy gate judges.
        share: its margin, 0.15 for "15%".
        errors: of the reference, float64 [N].
    """
    if metric.records and not isinstance(errors, Recorded):  # of a report, which has no records
        metric = MAE
    value = metric(errors)
    allowed, size = SHARE * metric.allowance(value, share), float(np.sqrt(np.mean(errors**2)))

    def cost(level: float) -> float:
        if metric.absolute:
            return float(metric(np.hypot(errors, level))) - value
        return level * size

    found = _largest(cost, allowed)
    text = f"{metric.name} {metric.text(value)} may move by {metric.difference(allowed)}"
    return Tolerance(max(found, FLOOR), _worded(text, found), len(errors))


def of_classes(metric: Metric, share: float, logits: Sequence[Array]) -> Tolerance:
    """For classes: how many photos change theirs, by the distance of the two largest logits.

    Args:
        metric: that the accuracy gate judges, a rate.
        share: its margin in points over 100.
        logits: of the reference, float32 [1, K] each.
    """
    centred = _centred(logits)
    scale = float(np.sqrt(np.mean(np.square(centred))))
    allowed = SHARE * metric.allowance(1.0, share)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((DRAWS, *centred.shape))
    chosen = centred.argmax(axis=1)

    def cost(level: float) -> float:
        noisy: NDArray[np.intp] = (centred + level * scale * z).argmax(axis=2)
        return float((noisy != chosen).mean())

    found = _largest(cost, allowed)
    text = f"{metric.difference(allowed)} of the photos may change their class"
    return Tolerance(max(found, FLOOR), _worded(text, found), len(centred))


def _largest(cost: "object", allowed: float) -> float:
    """The largest level up to 1 whose cost is within the allowance."""
    assert callable(cost), "a function of the level"
    low, high = 0.0, 1.0
    if cost(high) <= allowed:
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= allowed else (low, middle)
    return low


def _worded(text: str, found: float) -> str:
    if found < FLOOR:
        return f"{text}, which noise of {found:.2g} would; no rung is held closer than {FLOOR:g}"
    return f"{text}, a tenth of the gate's margin"


def noise(task: Task, references: Sequence[Array], outputs: Sequence[Array]) -> float:
    """The relative noise of some outputs [1, ...] against the reference's (see the module)."""
    if not all(np.isfinite(output).all() for output in (*references, *outputs)):
        return NO_LIMIT
    if task.metric.points:
        a, b = _centred(references), _centred(outputs)
    else:
        a, b = (
            np.concatenate([_numbers(task, output) for output in side])
            for side in (references, outputs)
        )
    change, size = (float(np.sqrt(np.mean(np.square(value)))) for value in (b - a, a))
    if change == 0:
        return 0.0
    return min(change / size, NO_LIMIT) if size else NO_LIMIT


def _numbers(task: Task, output: Array) -> Floats:
    """What noise is of, [...]: predictions; of records the images' errors, or whole outputs."""
    if not task.records:
        return task.predictions(output)
    return (output[:, 0] if output.ndim == 2 else output).astype(np.float64).ravel()


def _centred(logits: Sequence[Array]) -> Floats:
    rows = np.concatenate(list(logits)).astype(np.float64)
    return np.asarray(rows - rows.mean(axis=1, keepdims=True))
