"""Agreement of two networks on the same images: SQNR, relative error, and changed images."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.tasks.metric import MAE
from kdcompile.tasks.task import Task

LIMIT_DB = 200.0  # stands for "equal" (and its negative for "not at all"): JSON has no infinity

Floats = NDArray[np.float32]
Errors = NDArray[np.float64]
Mask = NDArray[np.bool_]


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise) of two powers, kept within +-`LIMIT_DB`; noise must be a number."""
    if noise == 0:
        return LIMIT_DB
    if signal == 0 or not np.isfinite(noise):
        return -LIMIT_DB
    return float(np.clip(10 * np.log10(signal / noise), -LIMIT_DB, LIMIT_DB))


def powers(reference: Floats, output: Floats) -> tuple[float, float]:
    """The power of a reference and of what an output differs from it, summed in float64."""
    a = reference.astype(np.float64)
    return float(np.square(a).sum()), float(np.square(a - output).sum())


def pooled_sqnr(references: Iterable[Floats], outputs: Iterable[Floats]) -> float:
    """SQNR in dB over all images together: 20 log10(|a| / |a - b|)."""
    both = [powers(a, b) for a, b in zip(references, outputs, strict=True)]
    return decibels(sum(s for s, _ in both), sum(n for _, n in both))


def relative_error(reference: Floats, output: Floats) -> float:
    """max |a - b| / max |a|."""
    peak = max(float(np.abs(reference).max()), 1e-30)
    return float(np.abs(reference.astype(np.float64) - output).max()) / peak


def agreement(references: Sequence[Floats], outputs: Iterable[Floats]) -> dict[str, float]:
    """The worst over images: `max_rel_error`, `sqnr_db`, and their number `n`.

    Raises:
        KDError: `parity-nonfinite`, or `parity-empty` for no images.
    """
    pairs = list(zip(references, outputs, strict=True))
    for place, pair in enumerate(pairs):
        if not all(np.isfinite(value).all() for value in pair):
            raise KDError(
                "parity-nonfinite",
                "the network's output holds NaN or infinity",
                where=f"image {place}",
                fix="check the weights; in fp16, a value over 65504 overflows",
            )
    if not pairs:
        raise KDError("parity-empty", "there is no image to compare on", fix="fill the val split")
    return {
        "max_rel_error": max(relative_error(a, b) for a, b in pairs),
        "sqnr_db": min(decibels(*powers(a, b)) for a, b in pairs),
        "n": len(pairs),
    }


def taught(task: Task, labels: Sequence[float] | Errors, outputs: int) -> Mask:
    """Which images a reference of so many outputs can have right, bool [N].

    All, but where outputs are classes: a network that knows more has the reference's first.
    """
    return np.less(labels, outputs) if task.metric.points else np.ones(len(labels), np.bool_)


def taught_places(task: Task, photos: Sequence[Photo], outputs: int) -> list[int]:
    """The places of the photos of which that is so."""
    known = taught(task, [task.truth(photo) for photo in photos], outputs)
    return [int(place) for place in np.flatnonzero(known)]


class Changes(NamedTuple):
    """Which images a network has worse, and which better, bool [N]; and when one is worse."""

    worse: Mask
    better: Mask
    rule: str


def changes(task: Task, before: Errors, after: Errors, tolerance: float) -> Changes:
    """What became of each image.

    Args:
        task: what the errors are of.
        before: errors of the reference, [N].
        after: of the network, on the same images.
        tolerance: by which an error may change, as a share of the reference's mean absolute error;
            not used for classes.
    """
    grew = np.abs(after) - np.abs(before)
    if task.metric.points:  # errors are 0 or 1
        return Changes(grew > 0, grew < 0, "right before and wrong now")
    allowed = tolerance * MAE(before)
    rule = f"an absolute error that grew by more than {allowed:.4g}"
    return Changes(grew > allowed, grew < -allowed, rule)
