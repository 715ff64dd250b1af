"""Paired test over images that decides whether a change to a quantised network is kept."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from kdcompile.core.errors import KDError
from kdcompile.data.preprocess import Frame
from kdcompile.onnx_graph.graph import Images
from kdcompile.onnx_graph.session import cpu_session, run_session
from kdcompile.stats.bootstrap import percentile_interval, resampled
from kdcompile.tasks.agreement import decibels, powers
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import Task

RESAMPLES = 9999
TAIL = (1 - 0.95) / 2  # left out at either end of an interval
FEWEST = 8  # images: a bootstrap of fewer claims more than they can tell

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Outcome:
    """How a quantised network does, image by image.

    Args:
        sqnr_db: of its outputs against the float32 network's, [N].
        errors: the task's error of each image [N], where it is known.
        metric: makes one number of the errors.
    """

    sqnr_db: Floats
    errors: Floats | None = None
    metric: Metric | None = None

    @property
    def mean_db(self) -> float:
        """Mean SQNR over the images."""
        return float(self.sqnr_db.mean())


@dataclass(frozen=True)
class Worth:
    """The gain in mean SQNR and the worsening of the metric, each with its 95 % interval."""

    gain_db: float
    gain_interval_db: Interval
    worse_by: float | None = None
    worse_interval: Interval | None = None

    @property
    def is_harmful(self) -> bool:
        """Whether the metric is measurably worse."""
        return self.worse_interval is not None and self.worse_interval[0] > 0

    @property
    def is_worth_it(self) -> bool:
        """Whether SQNR rose by more than its noise, and the metric is not measurably worse."""
        return self.gain_interval_db[0] > 0 and not self.is_harmful

    @property
    def why(self) -> str:
        """The reason of the verdict."""
        low, high = self.gain_interval_db
        gain = f"{self.gain_db:+.2f} dB [{low:+.2f}, {high:+.2f}]"
        if low <= 0:
            word = "fell" if high < 0 else "did not change measurably"
            return f"SQNR {word}: {gain}"
        return (
            f"SQNR rose, {gain}, but the metric is worse"
            if self.is_harmful
            else f"SQNR rose: {gain}"
        )


def enough(count: int, where: str, what: str) -> None:
    """Refuse too few images.

    Raises:
        KDError: `refine-few`.
    """
    if count < FEWEST:
        raise KDError(
            "refine-few",
            f"{count} {what} cannot tell a gain from noise",
            where=where,
            fix=f"list at least {FEWEST}, or set quantize.refine = []",
        )


def compare(before: Outcome, after: Outcome, seed: int = 0) -> Worth:
    """What `after` gains, on the same images in the same order.

    The percentile bootstrap, which draws each image with both of its outcomes.
    """
    count = len(before.sqnr_db)
    gains = after.sqnr_db - before.sqnr_db
    drawn = resampled(lambda picks: gains[picks].mean(axis=1), count, RESAMPLES, seed)
    gain = float(gains.mean()), percentile_interval(drawn, TAIL)
    metric = after.metric
    if metric is None or before.errors is None or after.errors is None:
        return Worth(*gain)
    new, old = after.errors, before.errors
    drawn = resampled(
        lambda picks: metric.worse_by(metric.of(new[picks], axis=1), metric.of(old[picks], axis=1)),
        count,
        RESAMPLES,
        seed,
    )
    worse = float(metric.worse_by(metric(new), metric(old)))
    return Worth(*gain, worse, percentile_interval(drawn, TAIL))


def against(
    reference: ModelProto,
    images: Images,
    task: Task | None = None,
    truths: Sequence[float] = (),
    metric: Metric | None = None,
    frames: Sequence[Frame] | None = None,
) -> Callable[[ModelProto], Outcome]:
    """A judge of quantised networks by their outputs on some images, by ONNX Runtime.

    Args:
        reference: the float32 network; its outputs are kept.
        images: float32 [1, C, H, W] each, iterated once for each network.
        task: gives each output its error, where the truths are known.
        truths: one for each image.
        metric: of the task, the task's own if None.
        frames: where each photo lies in its image; None where none is padded.
    """
    wanted = list(_outputs(reference, images))

    def judge(quantised: ModelProto) -> Outcome:
        sqnr, predicted = [], []
        for i, output in enumerate(_outputs(quantised, images)):
            sqnr.append(decibels(*powers(wanted[i], output)))
            if task is not None:
                seen = output if frames is None else task.within(output, frames[i])
                predicted += list(task.predictions(seen))
        if task is None:
            return Outcome(np.array(sqnr))
        return Outcome(np.array(sqnr), task.errors(predicted, truths), metric or task.metric)

    return judge


def _outputs(model: ModelProto, images: Images) -> Iterator[NDArray[np.float32]]:
    session = cpu_session(model, as_written=True)
    return (run_session(session, image) for image in images)
