"""Outputs whose values along an axis are scores of classes: are they that, and where two differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from kdcompile.core.errors import KDError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from kdcompile.config.spec import Scores
    from kdcompile.core.ports import Ports

APART = 0.01  # of a sum of probabilities from 1: what a network in half precision gives


def disagreement(
    outputs: Mapping[str, NDArray[Any]],
    answer: Mapping[str, NDArray[Any]],
    axes: Mapping[str, Scores],
) -> float:
    """The share of positions of which two networks name another class, of the worst output.

    A value that is no number names none: it differs.

    Args:
        outputs: of a network, by name.
        answer: the teacher's.
        axes: of which outputs the values along an axis are scores.
    """
    shares = []
    for name, scores in axes.items():
        own, theirs = outputs[name], answer[name]
        differs = own.argmax(scores.axis) != theirs.argmax(scores.axis)
        shares.append(float((differs | np.isnan(own).any(scores.axis)).mean()))
    return max(shares)


def check_axes(axes: Mapping[str, Scores], outputs: Ports) -> None:
    """Refuse names that are no outputs, and axes that they do not have.

    Raises:
        KDError: `task-outputs`.
    """
    shapes = {port.name: port.shape for port in outputs.ports}
    for name, scores in axes.items():
        where = f"[task.outputs.{name}]"
        if name not in shapes:
            raise KDError(
                "task-outputs",
                f"the teacher has no output {name!r}{nearest(name, shapes)}",
                where=where,
                fix=f"name one of {', '.join(shapes)}",
            )
        shape = shapes[name]
        if not -len(shape) <= scores.axis < len(shape) or shape[scores.axis] < 2:
            fit = [str(place) for place, size in enumerate(shape) if size > 1]
            raise KDError(
                "task-outputs",
                f"{name} is {list(shape)}: axis {scores.axis} has no two classes",
                where=where,
                fix=f"give the axis of its classes, {' or '.join(fit) or 'or leave it out'}",
            )


def check_probabilities(
    axes: Mapping[str, Scores], answer: Mapping[str, NDArray[Any]], where: str
) -> None:
    """Refuse an output that is said to be probabilities and is none.

    Raises:
        KDError: `task-outputs`.
    """
    for name, scores in axes.items():
        if scores.form != "probabilities":
            continue
        given = answer[name]
        sums = given.sum(scores.axis, dtype=np.float64)
        if not (given.min() >= -APART and np.abs(sums - 1).max() <= APART):
            raise KDError(
                "task-outputs",
                f"the teacher's {name} for {where} is no probability: along axis {scores.axis} its "
                f"values go from {given.min():.4g} to {given.max():.4g} and sum to "
                f"{sums.min():.4g} to {sums.max():.4g}",
                where=f"[task.outputs.{name}] form",
                fix='use form = "logits", or let the network end in a softmax along that axis',
            )
