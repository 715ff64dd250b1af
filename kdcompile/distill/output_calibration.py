"""Calibration of a trained student's output: a scale, an offset or a temperature.

Fitted after the training and folded into the last layer, so that nothing runs for it later. A
count or a value gets a*x + b with the least error by the task's metric, logits get the temperature
of the least cross-entropy (Guo et al., ICML 2017), which moves no class. It is kept only where
cross-validation says that photos which it was not fitted on gain more than their noise.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import evenly
from kdcompile.distill.evaluate import in_inference, outputs
from kdcompile.stats.bootstrap import t_quantile
from kdcompile.tasks.task import Task

Floats = NDArray[np.float64]

FOLDS = 5  # neighbours stay together: frames of one scene are alike
FEWEST = 4 * FOLDS  # validation photos: fewer tell no gain from noise
CONFIDENCE = 0.95  # one-sided, of the gain on photos that were left out of the fit
ROUNDS, NEAR = 100, 1e-9  # of reweighted least squares, and the least residual that it divides by
WIDEST = 20.0  # of a temperature, and one over it
EXACT = 1e-3  # of the output's largest value, by which folding may miss: half-precision kernels


@dataclass(frozen=True)
class OutputCalibration:
    """What was fitted, and whether it is in the student.

    Args:
        kind: "scale", "affine" or "temperature".
        scale: of the output.
        offset: of the output, in the task's unit.
        before: mean loss of the validation photos: |error|, squared error or cross-entropy.
        after: the same with what was fitted on others, in `FOLDS` turns.
        gain: lower confidence bound of the mean gain of a photo.
        kept: it is folded into the student.
        why: the reason.
    """

    kind: str
    scale: float
    offset: float
    before: float
    after: float
    gain: float
    kept: bool
    why: str

    def to_json(self) -> dict[str, float | str | bool]:
        """Plain JSON values."""
        return asdict(self)


def calibrate_output(
    network: nn.Module,
    train: Sequence[Photo],
    val: Sequence[Photo],
    preprocess: Preprocess,
    device: torch.device,
    task: Task,
    known: tuple[Floats, Floats] | None = None,
) -> OutputCalibration | None:
    """Fit, and change the last layer's weights in place where that pays.

    Args:
        network: the trained student.
        train: of which as many as the validation photos take part in each fit.
        val: validation photos, each of which is left out of one fit.
        preprocess: pixels to input.
        device: of the network.
        task: says what its output may be calibrated by.
        known: its predictions for `evenly(train, len(val))` and for `val`, where it has run.

    Returns:
        What was found; None where the task's output is not to be calibrated or there are too few
        validation photos.
    """
    if task.output_fit is None or len(val) < FEWEST:
        return None
    layer = _last_layer(network, preprocess, val[0], device)
    kind = "scale" if task.output_fit == "affine" and _no_bias(layer) else task.output_fit
    fit = _Fit(kind, task.metric.power)
    seen = []
    for photos, predicted in zip(
        (evenly(train, len(val)), val), known or (None, None), strict=True
    ):
        given: Any = predicted
        if predicted is None or kind == "temperature":  # which is of logits
            given = _given(network, photos, preprocess, device, task)
        true = np.array([task.truth(photo) for photo in photos])
        seen.append((np.asarray(given, np.float64), true))
    before, after = fit.validated(*seen)
    gain = _least_gain(before - after)
    scale, offset = fit.best(*(np.concatenate(both) for both in zip(*seen, strict=True)))
    kept, why = gain > 0, "photos left out of the fit gain more than their noise"
    if not kept:
        why = "photos left out of the fit gain no more than their noise"
    elif not _folded(layer, scale, offset, network, preprocess, val[0], device):
        kept, why = False, "the network's last layer does not scale its output"
    means = float(before.mean()), float(after.mean())
    return OutputCalibration(kind, scale, offset, *means, gain, kept, why)


@dataclass(frozen=True)
class _Fit:
    """A fit of outputs [N] or logits [N, K] to what is true [N]."""

    kind: str
    power: int

    def best(self, given: Floats, true: Floats) -> tuple[float, float]:
        """Scale and offset of the least loss; the scale is positive."""
        if self.kind == "temperature":
            span = np.log(WIDEST)
            found = minimize_scalar(
                lambda log: self.losses(given, true, float(np.exp(log)), 0.0).mean(),
                bounds=(-span, span),
                method="bounded",
            )
            return float(np.exp(found.x)), 0.0
        rows = np.stack([given, np.ones_like(given)][: 1 if self.kind == "scale" else 2], axis=1)
        found = _least(rows, true, self.power)
        scale, offset = (*found.tolist(), 0.0)[:2]
        return (scale, offset) if scale > 0 and np.isfinite([scale, offset]).all() else (1.0, 0.0)

    def losses(self, given: Floats, true: Floats, scale: float, offset: float) -> Floats:
        """The loss of each photo, [N]."""
        if self.kind != "temperature":
            return np.asarray(np.abs(scale * given + offset - true) ** self.power)
        scaled = scale * given
        top = scaled.max(1, keepdims=True)
        total = top[:, 0] + np.log(np.exp(scaled - top).sum(1))
        return np.asarray(total - scaled[np.arange(len(true)), true.astype(np.int64)])

    def validated(
        self, train: tuple[Floats, Floats], val: tuple[Floats, Floats]
    ) -> tuple[Floats, Floats]:
        """Losses of the validation photos as they are, and with fits that left them out."""
        (given, true), after = val, np.zeros(len(val[1]))
        for fold in np.array_split(np.arange(len(true)), FOLDS):
            others = np.delete(np.arange(len(true)), fold)
            rest = [np.concatenate([a, b[others]]) for a, b in zip(train, val, strict=True)]
            after[fold] = self.losses(given[fold], true[fold], *self.best(*rest))
        return self.losses(given, true, 1.0, 0.0), after


def _least(rows: Floats, true: Floats, power: int) -> Floats:
    """The coefficients [P] of rows [N, P] whose errors to that power have the least sum.

    Least squares; for absolute errors reweighted until they are that (Schlossmacher, 1973).
    """
    weights = np.ones(len(true))
    found: Floats = np.zeros(rows.shape[1])
    for _ in range(1 if power == 2 else ROUNDS):
        root = np.sqrt(weights)
        found = np.asarray(
            np.linalg.lstsq(rows * root[:, None], true * root, rcond=None)[0], np.float64
        )
        away = np.abs(rows @ found - true)
        weights = 1.0 / np.maximum(away, NEAR * max(1.0, float(np.abs(true).max())))
    return found


def _least_gain(gains: Floats) -> float:
    """The lower bound of the mean of paired gains [N] by Student's t."""
    error = float(gains.std(ddof=1)) / np.sqrt(len(gains))
    return float(gains.mean() - t_quantile(CONFIDENCE, len(gains) - 1) * error)


def _given(
    network: nn.Module,
    photos: Sequence[Photo],
    preprocess: Preprocess,
    device: torch.device,
    task: Task,
) -> NDArray[Any]:
    """Predictions [N], or logits [N, K]."""
    with in_inference(network):
        found = [one for (one,) in outputs([network], photos, preprocess, device, task)]
    return np.concatenate(
        [one if task.output_fit == "temperature" else task.predictions(one) for one in found]
    )


def _last_layer(
    network: nn.Module, preprocess: Preprocess, photo: Photo, device: torch.device
) -> nn.Module | None:
    """The convolution or linear layer that runs last; None where there is none."""
    ran: list[nn.Module] = []
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = [module for module in network.modules() if isinstance(module, kinds)]
    hooks = [layer.register_forward_hook(lambda own, *_: ran.append(own)) for layer in layers]
    try:
        _output(network, preprocess, photo, device)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None


def _no_bias(layer: nn.Module | None) -> bool:
    return layer is not None and layer.bias is None


def _output(
    network: nn.Module, preprocess: Preprocess, photo: Photo, device: torch.device
) -> Tensor:
    given = torch.from_numpy(preprocess.input_of(photo)).to(device)
    with in_inference(network), torch.no_grad():
        found: Tensor = network(given)
    return found.double()


def _folded(
    layer: nn.Module | None,
    scale: float,
    offset: float,
    network: nn.Module,
    preprocess: Preprocess,
    photo: Photo,
    device: torch.device,
) -> bool:
    """Scale the layer; undone where the output is not scaled by it, as behind a sigmoid."""
    if layer is None:
        return False
    own: list[Tensor] = [p for p in (layer.weight, layer.bias) if isinstance(p, Tensor)]
    kept = [parameter.detach().clone() for parameter in own]
    before = _output(network, preprocess, photo, device)
    with torch.no_grad():
        for parameter in own:
            parameter.mul_(scale)
        if isinstance(layer.bias, Tensor):
            layer.bias.add_(offset)
        wanted = scale * before + offset
        missed = (_output(network, preprocess, photo, device) - wanted).abs().max()
        if float(missed) <= EXACT * float(wanted.abs().max()):
            return True
        for parameter, value in zip(own, kept, strict=True):
            parameter.copy_(value)
    return False
