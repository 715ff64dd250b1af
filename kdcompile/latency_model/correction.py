"""Correct all predictions for a device by the few networks that were measured on it.

A prediction's error is log-normal, of the deviation that its 90 % interval shows. Networks on one
device share a part of it (clocks, bandwidth, the library's kernels), so that one that was timed
moves the others too. With u_i = log(measured_i / predicted_i) / s_i, in units of the deviation s_i,

    u_i = sqrt(r) z + sqrt(1 - r) e_i,    z ~ N(0, 1) common to the device,    e_i ~ N(0, k)

and r the share in common. z has a normal posterior in closed form; k, 1 at first, takes the mean of
an inverse-gamma posterior, so that pairs that disagree widen what pairs that agree narrow. A
prediction then moves by s sqrt(r) E[z] and keeps the variance s^2 (r Var[z] + (1 - r) k), but never
so little that a pair lies outside its own interval.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from kdcompile.latency_model.predict import NINETY, Estimate

# r. Leave-one-network-out errors of the GPU fixtures, unlike networks, give about 0.2; 14 random
# students on a CPU that is not the fixtures' gave 0.9. Students of one search lie between.
SHARED = 0.5
NOISE = 0.02  # log deviation of a measured median between runs
TRUST = 4.0  # pairs that the model's own interval counts as, next to those that were measured


def log_sd(estimate: Estimate) -> float:
    """The deviation of the logarithm of the latency, at least that of a measurement."""
    return max(math.log(estimate.high_ms / estimate.low_ms) / (2 * NINETY), NOISE)


def scale_estimate(estimate: Estimate, factor: float) -> Estimate:
    """The prediction times a factor: its interval, its parts and its bounds too."""
    return replace(
        estimate,
        ms=factor * estimate.ms,
        low_ms=factor * estimate.low_ms,
        high_ms=factor * estimate.high_ms,
        bounds={name: factor * value for name, value in estimate.bounds.items()},
        parts=tuple(replace(part, ms=factor * part.ms) for part in estimate.parts),
    )


@dataclass(frozen=True)
class Correction:
    """The posterior of a device's common error.

    Args:
        pairs: how many measurements it rests on.
        shift: sqrt(r) E[z], in deviations of a prediction.
        spread: deviation that is left, as a share of a prediction's.
        shared: share of the left variance that all networks there have in common.
    """

    pairs: int = 0
    shift: float = 0.0
    spread: float = 1.0
    shared: float = SHARED

    @classmethod
    def of(cls, pairs: Sequence[tuple[Estimate, float]], shared: float = SHARED) -> "Correction":
        """From predictions with the milliseconds that were measured on the same device.

        Args:
            pairs: of distinct networks, at one precision, all measured in one run; may be empty.
            shared: r, of 0 to below 1.
        """
        if not pairs:
            return cls(shared=shared)
        scales = [log_sd(estimate) for estimate, _ in pairs]
        errors = [
            math.log(ms / estimate.ms) / scale
            for (estimate, ms), scale in zip(pairs, scales, strict=True)
        ]
        own = [1 - shared + (NOISE / scale) ** 2 for scale in scales]
        variance = 1 / (1 + sum(shared / o for o in own))
        mean = variance * math.sqrt(shared) * sum(u / o for u, o in zip(errors, own, strict=True))
        shift = math.sqrt(shared) * mean
        left = [u - shift for u in errors]
        misfit = sum(x**2 / o for x, o in zip(left, own, strict=True))
        k = (TRUST + misfit) / (TRUST + len(pairs))
        common = shared * variance
        total = common + (1 - shared) * k
        farthest = max(abs(x) for x in left) / NINETY
        spread = max(math.sqrt(total), farthest)
        return cls(len(pairs), shift, spread, common / spread**2)

    def apply(self, estimate: Estimate) -> Estimate:
        """The prediction moved and its interval renewed; its parts and bounds move with it."""
        if not self.pairs:
            return estimate
        scale = log_sd(estimate)
        factor = math.exp(scale * self.shift)
        moved, reach = scale_estimate(estimate, factor), math.exp(NINETY * scale * self.spread)
        note = f"corrected by {factor:.3g} from {self.pairs} measured on the device"
        return replace(
            moved,
            low_ms=moved.ms / reach,
            high_ms=moved.ms * reach,
            notes=(*estimate.notes, note),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, which `Correction(**values)` reads."""
        return asdict(self)
