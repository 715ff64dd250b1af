"""Agreement of two networks on the same images: SQNR and largest relative error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Iterable, Mapping, Sequence

import numpy as np

from kdcompile.core.errors import KDError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

TINY = 1e-12
LIMIT_DB = 200.0  # stands for "equal" (and its negative for "not at all"): JSON has no infinity


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
    both = [powers(a, b) for a, b in zip(references, outputs)]
    return decibels(sum(s for s, _ in both), sum(n for _, n in both))


def relative_error(reference: Floats, output: Floats) -> float:
    """max |a - b| / max |a|."""
    peak = max(float(np.abs(reference).max()), 1e-30)
    return float(np.abs(reference.astype(np.float64) - output).max()) / peak


def distance(outputs: Mapping[str, Any], answer: Mapping[str, Any]) -> float:
    """The largest |S - T| / |T| of named outputs, by Euclidean norms; NaN where one is no number.

    Args:
        outputs: of a network, by name.
        answer: the teacher's.
    """
    worst = 0.0
    for name, wanted in answer.items():
        gap = np.linalg.norm(outputs[name].astype(np.float64).ravel() - wanted.ravel())
        error = float(gap) / max(float(np.linalg.norm(wanted)), TINY)
        worst = max(worst, error) if error == error else error
    return worst


def agreement(references: Sequence[Floats], outputs: Iterable[Floats]) -> dict[str, float]:
    """The worst over images: `max_rel_error`, `sqnr_db`, and their number `n`.

    Raises:
        KDError: `parity-nonfinite`, or `parity-empty` for no images.
    """
    pairs = list(zip(references, outputs))
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
