"""Distances between the outputs of two forms of a network."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.ports import Ports
from kdcompile.debug.tolerance import NO_LIMIT

Floats = NDArray[np.float32]


def divergence(reference: Floats, suspect: Floats) -> float:
    """|a - b| / |a| in the Euclidean norm; infinite for another shape and for new NaN."""
    if reference.shape != suspect.shape:
        return float("inf")
    a, b = reference.astype(np.float64), suspect.astype(np.float64)
    other = ~((a == b) | (np.isnan(a) & np.isnan(b)))  # an infinity of both is no difference
    change = b[other] - a[other]
    if not np.isfinite(change).all():
        return float("inf")
    size, off = float(np.linalg.norm(a[np.isfinite(a)])), float(np.linalg.norm(change))
    if off == 0:
        return 0.0
    return off / size if size else float("inf")


def cosine(reference: Floats, other: Floats) -> float:
    """Of the angle between two outputs; 0 where one has no direction."""
    if not alike([(reference, other)]):
        return 0.0
    a, b = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    if size == 0:
        return float(np.array_equal(a, b))
    return float(np.clip(a @ b / size, -1.0, 1.0))


def largest(pairs: Sequence[tuple[Floats, Floats]]) -> float:
    """max |a - b| / max |a|, both over all images."""
    peak = max(float(np.abs(a).max()) for a, _ in pairs)
    off = max(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs)
    if off == 0:
        return 0.0
    return min(off / peak, NO_LIMIT) if peak else NO_LIMIT


def alike(pairs: Sequence[tuple[Floats, Floats]]) -> bool:
    """Whether outputs are of one shape and finite."""
    return all(
        a.shape == b.shape and bool(np.isfinite(a).all() and np.isfinite(b).all()) for a, b in pairs
    )


def split(reference: Floats, suspect: Floats, outputs: Ports | None) -> list[tuple[Floats, Floats]]:
    """The outputs of two networks one by one, where they are rows of several."""
    if outputs is None or reference.shape != suspect.shape:
        return [(reference, suspect)]
    a, b = outputs.unpack(reference), outputs.unpack(suspect)
    return [(a[name], b[name]) for name in outputs.names]


def apart(reference: Floats, suspect: Floats, outputs: Ports | None) -> float:
    """`divergence` of two outputs; of rows of several that of the worst."""
    return max(divergence(a, b) for a, b in split(reference, suspect, outputs))
