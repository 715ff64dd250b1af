"""Quality predictor of a search: capacity orders the students, short distillations correct it.

Capacity is a student's multiply-adds and the layers of the teacher's that it lacks:
log increase = a + b log(teacher's / student's multiply-adds) + c missing layers + noise, where the
increase is of the validation metric over the teacher's. The three numbers have a Gaussian prior;
students that are distilled for a short time determine them by Bayesian linear regression (Bishop
2006, 3.3). With few of them b and c, which give the order, stay near their prior.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# the prior: b is an exponent, and each missing layer doubles the increase; see docs/search.md
EXPONENT, LAYER = 0.5, float(np.log(2.0))
PRIOR_SD = (2.0, 0.25, 0.35)  # of a, b and c
STUDENT_SD = 0.3  # log deviation of a student from the model, before any is known
LEAST_LEFT = 0.01  # of an expected increase: none shown on few images is not none at all
MOST_VARIANCE = 2.0


@dataclass(frozen=True)
class ExpectedLoss:
    """How much worse than the teacher a student should be, in the metric's unit, and how sure."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Capacity:
    """What a student can learn with.

    Args:
        macs: its multiply-adds.
        missing: layers of the teacher that it lacks.
    """

    macs: int
    missing: int = 0


@dataclass(frozen=True, eq=False)
class QualityPredictor:
    """The linear model of the log of the expected increase.

    Args:
        teacher_macs: multiply-adds of the teacher.
        mean: a, b and c, [3].
        covariance: of them, [3, 3].
        noise: deviation of a student's logarithm from the model.
    """

    teacher_macs: int
    mean: Floats
    covariance: Floats
    noise: float = STUDENT_SD

    @classmethod
    def prior(cls, teacher_macs: int, unit: float) -> "QualityPredictor":
        """Before any student was distilled.

        Args:
            teacher_macs: multiply-adds of the teacher.
            unit: an increase of the metric that is barely visible on the validation images.
        """
        mean = np.array([np.log(unit), EXPONENT, LAYER])
        return cls(teacher_macs, mean, np.diag(np.square(PRIOR_SD)))

    def expected_loss(self, capacity: Capacity) -> ExpectedLoss:
        """Median and deviation of a student's increase."""
        at = self._features([capacity])[0]
        median = float(np.exp(at @ self.mean))
        variance = min(MOST_VARIANCE, float(at @ self.covariance @ at) + self.noise**2)
        return ExpectedLoss(median, median * float(np.sqrt(np.expm1(variance))))

    def fitted(
        self, distilled: Sequence[Capacity], increases: Sequence[ExpectedLoss]
    ) -> "QualityPredictor":
        """The posterior after short distillations.

        Args:
            distilled: students.
            increases: how much worse than the teacher it became, and the standard error of that; an
                increase within its own error counts as that error, and none at all as `LEAST_LEFT`
                of what was expected.
        """
        if not distilled:
            return self
        x = self._features(distilled)
        own_sd = np.array([i.sd for i in increases])
        became = np.maximum([i.mean for i in increases], own_sd)
        became = np.maximum(became, LEAST_LEFT * np.exp(x @ self.mean))
        y, own = np.log(became), own_sd / became
        prior = np.linalg.inv(self.covariance)
        noise = STUDENT_SD**2
        for _ in range(20):  # noise and model, each given the other
            weight = 1 / (noise + own**2)
            covariance = np.linalg.inv(x.T @ (weight[:, None] * x) + prior)
            mean = covariance @ (x.T @ (weight * y) + prior @ self.mean)
            used = float(np.trace(x @ covariance @ (x * weight[:, None]).T))
            squares = np.square(y - x @ mean) - own**2
            left = max(0.0, len(y) - used)
            noise = max(1e-6, (float(squares.sum()) + STUDENT_SD**2) / (left + 1))
        return QualityPredictor(self.teacher_macs, mean, covariance, float(np.sqrt(noise)))

    def _features(self, capacities: Sequence[Capacity]) -> Floats:
        rows = [[1.0, np.log(self.teacher_macs / max(1, c.macs)), c.missing] for c in capacities]
        return np.array(rows, np.float64)
