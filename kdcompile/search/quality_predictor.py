"""Quality predictor of a search: capacity orders the students, short distillations set the scale.

How much worse than the teacher a student will be falls as a power of its multiply-adds:
log increase = a + b log(teacher's / student's multiply-adds) + noise. Both numbers have a Gaussian
prior; the students that are distilled for a short time determine them by Bayesian linear regression
(Bishop 2006, 3.3). With few of them the exponent stays near its prior, and so does the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EXPONENT = 0.5  # of the prior; see docs/search.md
FACTOR_SD, EXPONENT_SD = 2.0, 0.25  # of the prior: of log increase, and of the exponent
STUDENT_SD = 0.3  # log deviation of a student about the line, before any is known
LEAST_LEFT = 0.01  # of an expected increase: none shown on few images is not none at all
MOST_VARIANCE = 2.0


@dataclass(frozen=True)
class ExpectedLoss:
    """How much worse than the teacher a student should be, in the metric's unit, and how sure."""

    mean: float
    sd: float


@dataclass(frozen=True, eq=False)
class QualityPredictor:
    """The line from log(teacher's / student's multiply-adds) to the log of the expected increase.

    Args:
        teacher_macs: multiply-adds of the teacher.
        mean: intercept and exponent, [2].
        covariance: of them, [2, 2].
        noise: deviation of a student's logarithm about the line.
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
        mean = np.array([np.log(unit), EXPONENT])
        return cls(teacher_macs, mean, np.diag([FACTOR_SD**2, EXPONENT_SD**2]))

    def expected_loss(self, macs: int) -> ExpectedLoss:
        """Median and deviation of the increase of a student with so many multiply-adds."""
        at = self._features([macs])[0]
        median = float(np.exp(at @ self.mean))
        variance = min(MOST_VARIANCE, float(at @ self.covariance @ at) + self.noise**2)
        return ExpectedLoss(median, median * float(np.sqrt(np.expm1(variance))))

    def fitted(self, macs: Sequence[int], increases: Sequence[ExpectedLoss]) -> "QualityPredictor":
        """The posterior after short distillations.

        Args:
            macs: multiply-adds of each distilled student.
            increases: how much worse than the teacher it became, and the standard error of that; an
                increase within its own error counts as that error, and none at all as `LEAST_LEFT`
                of what was expected.
        """
        if not macs:
            return self
        x = self._features(macs)
        own_sd = np.array([i.sd for i in increases])
        became = np.maximum([i.mean for i in increases], own_sd)
        became = np.maximum(became, LEAST_LEFT * np.exp(x @ self.mean))
        y, own = np.log(became), own_sd / became
        prior = np.linalg.inv(self.covariance)
        noise = STUDENT_SD**2
        for _ in range(20):  # noise and line, each given the other
            weight = 1 / (noise + own**2)
            covariance = np.linalg.inv(x.T @ (weight[:, None] * x) + prior)
            mean = covariance @ (x.T @ (weight * y) + prior @ self.mean)
            used = float(np.trace(x @ covariance @ (x * weight[:, None]).T))
            squares = np.square(y - x @ mean) - own**2
            left = max(0.0, len(y) - used)
            noise = max(1e-6, (float(squares.sum()) + STUDENT_SD**2) / (left + 1))
        return QualityPredictor(self.teacher_macs, mean, covariance, float(np.sqrt(noise)))

    def _features(self, macs: Sequence[int]) -> Floats:
        ratios = np.log(self.teacher_macs / np.maximum(np.array(macs, np.float64), 1.0))
        return np.stack([np.ones(len(ratios)), ratios], axis=1)
