"""Biases that make good what the errors of the other tensors do to the outputs.

A bias is sent whole whatever it is, so it may as well be the one that is best beside weights that
are not exact. With d the change of the outputs and J their slopes by the biases, b = -J^+ d by
ridge regression; its penalty is the one of least generalised cross-validation (Golub, Heath and
Wahba, Technometrics 1979), which also says what is expected to be left on other photos.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
PENALTIES = 10.0 ** np.arange(-6, 3, 0.5)  # in largest singular values, squared
CAUTION = 1.4  # freedom is counted so many times: few outputs would let it take too small a one


class Biases:
    """The biases of a network and what they can do.

    Args:
        slopes: of every output by each bias, [N, C] by the bias's name; of N outputs, flat.
    """

    def __init__(self, slopes: Mapping[str, Floats]) -> None:
        self._sizes = {name: part.shape[1] for name, part in slopes.items()}
        self._active = bool(slopes) and any(part.any() for part in slopes.values())
        if self._active:
            whole = np.concatenate(list(slopes.values()), axis=1)
            self._u, self._s, self._v = np.linalg.svd(whole, full_matrices=False)

    def left(self, change: Floats) -> float:
        """The mean square that is expected to be left of a change of the outputs [N]."""
        return self._best(change)[0]

    def fit(self, change: Floats) -> dict[str, Floats]:
        """What to add to each bias against a change of the outputs [N]."""
        kept = self._best(change)[1]
        if kept is None:
            return {}
        along = kept * (self._u.T @ change) / np.where(self._s > 0, self._s, 1)
        ends = np.cumsum(list(self._sizes.values()))[:-1]
        return dict(zip(self._sizes, np.split(-(along @ self._v), ends), strict=True))

    def _best(self, change: Floats) -> tuple[float, Floats | None]:
        """The score of the best penalty, and the share of each direction that it takes away."""
        square, count = float(change @ change), len(change)
        best: tuple[float, Floats | None] = (square / count, None)  # of no bias at all
        if not self._active:
            return best
        along = np.square(self._u.T @ change)
        for penalty in PENALTIES * self._s[0] ** 2:
            kept = self._s**2 / (self._s**2 + penalty)
            free = count - CAUTION * float(kept.sum())
            if free > 0:
                rest = square - float(along @ (kept * (2 - kept)))
                score = count * max(0.0, rest) / free**2
                best = min(best, (score, kept), key=lambda one: one[0])
        return best
