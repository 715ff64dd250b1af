"""Sensitivity: the cost of a block's error for the whole network, in the validation metric.

The teacher is degraded on purpose, one cut at a time: its maps are replaced by what a few of their
channels can predict of all of them. That gives pairs (relative squared error at the cut, as for
blocks, increase of the metric), and between them a rising curve for each cut. A student's
expected increase is the sum of its blocks' values on the curves: to first order in the errors,
which are taken as independent.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdcompile.config.spec import Spec
from kdcompile.core.files import write_json
from kdcompile.core.sources import source_key
from kdcompile.core.store import Store, digest
from kdcompile.data.splits import evenly, load_splits, splits_digest
from kdcompile.distill.evaluate import predict
from kdcompile.distill.training_context import training_device
from kdcompile.search.predictors.block_data import BlockContext, TrainingData, training_data
from kdcompile.search.predictors.teacher_features import (
    at_next_cut,
    hooked,
    rows_of,
    teacher_maps,
    weighted_error,
)
from kdcompile.search.predictors.worker_pool import evaluate_all
from kdcompile.stats.bootstrap import resamples
from kdcompile.tasks.task import Task, preprocess_of, task_of

Floats = NDArray[np.float64]
KEPT = (0.0, 1 / 16, 1 / 4, 1 / 2)  # shares of a cut's channels; 0: only their means
RIDGE = 1e-6  # relative to the mean variance of a channel
RESAMPLES = 200


@dataclass(frozen=True)
class SensitivityPoint:
    """A teacher whose maps at one cut are predicted from `kept` of their channels.

    error: relative squared error at the cut, as `BlockResult.error`; increase: how much worse the
    validation metric is than the intact teacher's, and its standard error over the images (a
    paired bootstrap).
    """

    cut: int
    kept: int
    error: float
    increase: float
    increase_sd: float


@dataclass(frozen=True)
class Curve:
    """Metric increase over error at one cut: rising, from (0, 0), linear between its points."""

    errors: tuple[float, ...]
    increases: tuple[float, ...]
    sds: tuple[float, ...]

    @classmethod
    def of(cls, points: Sequence[SensitivityPoint]) -> "Curve":
        """Through the points of one cut; where they fall, the weighted mean of neighbours."""
        ordered = sorted(points, key=lambda d: d.error)
        least = max((d.increase_sd for d in ordered), default=0.0) * 1e-3 + 1e-12
        values = _isotonic(
            np.array([0.0, *(d.increase for d in ordered)]),
            # the origin is exact: it outweighs what noise puts below it
            np.array([1e6 / least**2, *(1 / max(d.increase_sd, least) ** 2 for d in ordered)]),
        )
        return cls(
            (0.0, *(d.error for d in ordered)),
            (0.0, *(max(0.0, float(v)) for v in values[1:])),
            (0.0, *(d.increase_sd for d in ordered)),
        )

    def at(self, error: float) -> float:
        """The increase at an error; beyond the last point in proportion to the error."""
        last = self.errors[-1]
        value = float(np.interp(error, self.errors, self.increases))
        return value if error <= last or last <= 0 else value * error / last

    def sd_at(self, error: float, error_sd: float) -> float:
        """The value's deviation: of the curve, and of the error through the slope."""
        own = float(np.interp(error, self.errors, self.sds))
        low, high = max(0.0, error - error_sd), error + error_sd
        return float(np.hypot(own, (self.at(high) - self.at(low)) / 2))


@dataclass(frozen=True)
class ExpectedLoss:
    """How much worse than the teacher a student should be, in the metric's unit, and how sure."""

    mean: float
    sd: float


def expected_loss(curves: Sequence[Curve], errors: Sequence[tuple[float, float]]) -> ExpectedLoss:
    """A student's expected increase.

    Args:
        curves: of the cuts.
        errors: (error, its deviation) of the student's block at each cut, measured or predicted.
    """
    pairs = list(zip(curves, errors, strict=True))
    mean = sum(curve.at(error) for curve, (error, _) in pairs)
    squares = sum(curve.sd_at(error, sd) ** 2 for curve, (error, sd) in pairs)
    return ExpectedLoss(mean, squares**0.5)


def sensitivity(context: BlockContext, images: int = 32, jobs: int = 1) -> list[Curve]:
    """The curve of every cut, from the store where it was measured before.

    Args:
        ground: the training data.
        images: validation images to look at, evenly spread.
        jobs: processes.
    """
    data = training_data(context)
    cases = [
        (cut, kept)
        for cut, order in enumerate(data.orders)
        for kept in sorted({int(share * len(order)) for share in KEPT})
    ]
    found = evaluate_all(partial(measure_point, context, images), cases, jobs, "sensitivity points")
    return [Curve.of([d for d in found if d.cut == cut]) for cut in range(len(data.cuts))]


def measure_point(context: BlockContext, images: int, case: tuple[int, int]) -> SensitivityPoint:
    """One point, a cut with the number of channels that it keeps; stage `damage` of the store."""
    store, spec = Store(context.root), context.spec
    val = splits_digest(spec.data, spec.folder, store.hasher)["val"]
    parts = [context.key, images, *case, val, spec.export.profile]
    source = source_key(__name__, store.hasher)

    def build(folder: Path) -> Mapping[str, Any]:
        found = asdict(_measure_point(context, images, *case))
        write_json(folder / "damage.json", found)
        return found

    return SensitivityPoint(
        **store.make("damage", digest([*parts, source]), build).json("damage.json")
    )


def _measure_point(context: BlockContext, images: int, cut: int, kept: int) -> SensitivityPoint:
    spec, data = context.spec, training_data(context)
    task = task_of(spec)
    weight, bias, mean = _from_kept(data, cut, kept)
    whole = _whole(context, images)
    chosen = data.orders[cut][:kept]

    def predict_maps(_: str, output: Tensor) -> Tensor:
        return _predicted(output, chosen, weight, bias)

    with hooked(data.teacher, [data.cuts[cut].name], predict_maps):
        degraded = validation_errors(data.teacher, spec, images)
    increase, sd = paired_increase(task, whole, degraded, spec.seed)
    return SensitivityPoint(cut, kept, _error(data, cut, kept, weight, bias, mean), increase, sd)


@functools.lru_cache(maxsize=1)
def _whole(context: BlockContext, images: int) -> Floats:
    """The intact teacher's errors, once a process."""
    return validation_errors(training_data(context).teacher, context.spec, images)


def validation_errors(network: nn.Module, spec: Spec, images: int | None = None) -> Floats:
    """A network's error on each validation image, as the task has them, float64 [N].

    Args:
        network: as it is at this moment, hooks with it; it comes back on its own device.
        spec: its task and its data.
        images: images to look at, evenly spread; all of them where None.
    """
    task, device = task_of(spec), training_device()
    photos = evenly(load_splits(spec.data, spec.folder).val, images)
    preprocess = preprocess_of(spec)
    was_on = next(network.parameters()).device
    predicted = predict(network.to(device), photos, preprocess, device, task)
    network.to(was_on)
    return task.errors(predicted, [task.truth(photo) for photo in photos])


def validation_metric(network: nn.Module, spec: Spec) -> float:
    """The metric of a network on all validation images."""
    return task_of(spec).metric(validation_errors(network, spec))


def _from_kept(data: TrainingData, cut: int, kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight [C, kept] and bias [C] that predict all channels from the first, and the mean [C]."""
    parts = [rows_of(maps[0], cut) for _, maps in _maps(data, cut, data.fit)]
    rows = torch.cat(parts).double()
    mean = rows.mean(0)
    moments = (rows - mean).T @ (rows - mean) / len(rows)
    chosen = data.orders[cut][:kept]
    own = moments[chosen][:, chosen]
    strength = RIDGE * moments.diagonal().mean().clamp(min=1e-30)
    own = own + strength * torch.eye(kept, dtype=own.dtype, device=own.device)
    weight = torch.linalg.solve(own, moments[chosen]).T if kept else rows.new_zeros(len(mean), 0)
    return weight.float(), (mean - weight @ mean[chosen]).float(), mean.float()


def _maps(data: TrainingData, cut: int, images: Tensor) -> Any:
    return teacher_maps(data.teacher, [data.cuts[cut].name], images)


def _error(
    data: TrainingData, cut: int, kept: int, weight: Tensor, bias: Tensor, mean: Tensor
) -> float:
    wrong, spread = 0.0, 0.0
    for _, (whole,) in _maps(data, cut, data.held):
        maps = at_next_cut(data.cuts, cut, whole)
        made = _predicted(maps, data.orders[cut][:kept], weight, bias)
        wrong += float(weighted_error(made - maps, data.demands[cut]).sum())
        spread += float(weighted_error(maps - mean[:, None, None], data.demands[cut]).sum())
    return wrong / max(spread, 1e-30)


def _predicted(maps: Tensor, chosen: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("ck,nkhw->nchw", weight, maps[:, chosen]) + bias[:, None, None]


def paired_increase(task: Task, whole: Floats, degraded: Floats, seed: int) -> tuple[float, float]:
    """How much worse the metric became, and the deviation of that over resampled images.

    No rate is known to less than one of the images, though all of them be answered alike.
    """
    metric, picks = task.metric, resamples(len(whole), RESAMPLES, seed)
    spread = metric.worse_by(metric.of(degraded[picks], -1), metric.of(whole[picks], -1))
    least = 1 / len(whole) if metric.points else 0.0
    increase = float(metric.worse_by(metric(degraded), metric(whole)))
    return increase, max(float(np.std(spread)), least)


def _isotonic(values: Floats, weights: Floats) -> Floats:
    """The nearest rising sequence in weighted least squares (pool adjacent violators)."""
    blocks: list[list[float]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        blocks.append([float(value), float(weight), 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, mass, length = blocks.pop()
            before = blocks[-1]
            joint = before[1] + mass
            blocks[-1] = [(before[0] * before[1] + mean * mass) / joint, joint, before[2] + length]
    return np.repeat([b[0] for b in blocks], [int(b[2]) for b in blocks])
