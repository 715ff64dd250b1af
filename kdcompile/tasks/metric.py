"""One number for the errors of many images: what it is, and what is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Sequence

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

LEVELS = (1, 2, 3)  # of GAME


@dataclass(frozen=True)
class Metric:
    """One number for the errors of many images.

    Args:
        name: as the spec and the reports write it.
        of: `of(errors, axis)`, vectorised over the other axes, for the bootstrap.
        higher: larger is better.
        points: limits in per cent are percentage points of the metric, not a share of the
            teacher's value; for metrics that are rates.
        most: the largest value; the smallest is 0.
        level: of GAME, whose errors are of density maps (`game`); None where a metric's errors
            are of predictions.
        absolute: limits in per cent are of the metric itself, for errors that are relative already.
        power: of an error: its metric is the root of that order of the mean of |errors| to it.
        whole: its errors are of whole outputs, as those of GAME are: a board does not send these.
        told: for reports alone, as no share of it is a limit.
        draws: resamples that an interval takes where each value of the metric costs a user's
            time; None where it is computed at once for all.
        records: of the records that errors carry (`kdcompile.tasks.records`), and no mean of the
            errors themselves.
    """

    name: str
    of: Callable[..., Any]
    higher: bool = False
    points: bool = False
    most: float = np.inf
    level: int | None = None
    power: int = 1
    absolute: bool = False
    whole: bool = False
    told: bool = False
    draws: int | None = None
    records: bool = False

    def __call__(self, errors: Sequence[float] | Floats) -> float:
        """The metric of some errors [N]."""
        return float(self.of(np.asanyarray(errors, np.float64), axis=-1))

    def worse_by(self, student: Any, teacher: Any) -> Any:
        """How much worse the student is, negative where it is better; numbers or arrays."""
        return teacher - student if self.higher else student - teacher

    def possible(self, value: float) -> float:
        """The nearest value that the metric can have; NaN stays."""
        return float(np.clip(value, 0.0, self.most))

    def is_better(self, value: float, than: float) -> bool:
        """Whether a value beats another; NaN beats nothing, and everything beats NaN."""
        if np.isnan(than):
            return not np.isnan(value)
        return value > than if self.higher else value < than

    def allowance(self, teacher: float, share: float) -> float:
        """What `share` of a per cent limit (0.05 of "5%") allows beside the teacher's value."""
        return share if self.points or self.absolute else share * abs(teacher)

    def limit(self, teacher: float, share: float) -> float:
        """The worst possible value that `share` of a per cent limit allows."""
        allowed = self.allowance(teacher, share)
        return self.possible(teacher - allowed if self.higher else teacher + allowed)

    @property
    def needs_outputs(self) -> bool:
        """Whether predictions alone do not tell its errors."""
        return self.whole or self.level is not None

    @property
    def worsening(self) -> str:
        """The word for becoming worse."""
        return "decrease" if self.higher else "increase"

    def text(self, value: float) -> str:
        """A value for a person: a rate in per cent, else four significant digits."""
        return f"{value:.2%}" if self.points else f"{value:.4g}"

    def difference(self, value: float) -> str:
        """A difference of two values for a person."""
        return f"{100 * value:.2f} points" if self.points else f"{value:.4g}"

    @property
    def worst(self) -> float:
        """The value that every measured one beats."""
        return -np.inf if self.higher else np.inf


def _mae(errors: Floats, axis: int = -1) -> Any:
    return np.mean(np.abs(errors), axis=axis)


def _rmse(errors: Floats, axis: int = -1) -> Any:
    return np.sqrt(np.mean(np.square(errors), axis=axis))


def _top1(errors: Floats, axis: int = -1) -> Any:
    return np.mean(1.0 - errors, axis=axis)


def _mean(errors: Floats, axis: int = -1) -> Any:
    return np.mean(errors, axis=axis)


MAE, RMSE = Metric("mae", _mae), Metric("rmse", _rmse, power=2)
TOP1 = Metric("top1", _top1, higher=True, points=True, most=1.0)
GAMES = tuple(Metric(f"game{level}", _mae, level=level) for level in LEVELS)
RELATIVE = Metric("rel_error", _mean, absolute=True)
METRICS = {metric.name: metric for metric in (MAE, RMSE, TOP1, *GAMES, RELATIVE)}
