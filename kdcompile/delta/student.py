"""A student of a spec with weights to evaluate: its outputs, errors, sensitivities and verdict."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.readers import parse_json
from kdcompile.core.report import Verdict
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.data.splits import evenly, judged, load_splits
from kdcompile.delta.tensors import State
from kdcompile.distill.evaluate import BATCH_PIXELS, predict
from kdcompile.distill.training_context import training_device
from kdcompile.models.factory import load_teacher
from kdcompile.models.fit import check_fit
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.stats.drawn import bounds_of
from kdcompile.stats.noninferiority import compare, observed_text
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import preprocess_of, task_of

Floats = NDArray[np.float64]
IMAGES, PIXELS = 256, 4 * 1024 * 1024  # training photos that are looked at, pixels of them
FEW = 4  # one in so many is looked at where it is done often
BIASED = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)
DIFFERENTIATED = 128 * 1024  # pixels that are differentiated at once
PLACES = 4096  # of one photo at which a layer's inputs are taken


@dataclass(frozen=True)
class Judged:
    """A verdict of photos.

    value, reference: the metric of what the delta makes, and of what it is held against; high: the
    one-sided 95 % bound of how much worse, None for too few photos; loss: that was to be proven,
    as a share.
    """

    verdict: Verdict
    reason: str
    metric: str
    value: float
    reference: float
    high: float | None
    loss: float
    images: int


class Student:
    """A network of a spec into which weights are put to be run.

    Raises:
        KDError: `delta-architecture`; those of the teacher, the data and `check_fit`.
    """

    def __init__(self, spec: Spec, state: State, metadata: Mapping[str, str], path: Path) -> None:
        self.spec, self.device = spec, training_device()
        architecture = _architecture(metadata, path)
        self.model = student_from_architecture(load_teacher(spec), architecture, spec.folder)
        check_fit(self.model.state_dict(), state, path)
        self.model.to(self.device).eval()
        splits = load_splits(spec.data, spec.folder)
        self.val, self.test = splits.val, judged(splits.test, spec.data.max_test)
        self.task = task_of(spec)
        self.metric = self.task.selection_metric(spec.gates.accuracy.metric)
        self.preprocess = preprocess_of(spec)
        self._inputs = self._calibration(splits.train)

    def _calibration(self, train: Sequence[Photo]) -> list[tuple[Frame, Tensor]]:
        """Training photos, float32 [N, C, h, w], those together that lie alike in the input."""
        alike: dict[Frame, list[NDArray[np.float32]]] = {}
        height, width = train[0].pixels(self.preprocess.channels).shape[:2]
        most = min(IMAGES, max(FEW, PIXELS // (height * width)))
        for photo in evenly(train, most):
            pixels = photo.pixels(self.preprocess.channels)
            frame = self.preprocess.frame(*pixels.shape[:2])
            alike.setdefault(frame, []).append(self.preprocess(pixels))
        return [
            (frame, torch.from_numpy(np.concatenate(same)).to(self.device))
            for frame, same in alike.items()
        ]

    def _batches(self, every: int, pixels: int) -> Iterator[tuple[Frame, Tensor]]:
        """One in `every` of the calibration photos of each size, so many pixels at once."""
        for frame, images in self._inputs:
            area = images.shape[2] * images.shape[3]
            for part in torch.split(images[::every], max(1, pixels // area)):
                yield frame, part

    @torch.no_grad()
    def outputs(self, state: State, every: int = 1) -> Floats:
        """What the network of these weights gives for the calibration photos, flat.

        For one photo in `every` alone, of each size.
        """
        self.model.load_state_dict(state)
        found = [
            self._reduced(self.model(part), frame)
            for frame, part in self._batches(every, BATCH_PIXELS)
        ]
        return np.concatenate([one.cpu().numpy().reshape(-1) for one in found])

    def moments(self, state: State) -> dict[str, Floats]:
        """E[x x^T] of the inputs x of each convolution and linear layer, by its weight's name."""
        sums: dict[str, Tensor] = {}

        def keep(name: str, module: nn.Module, given: Tensor) -> None:
            columns = _columns(module, given)
            key = f"{name}.weight"
            sums[key] = sums.get(key, 0) + columns.T @ columns / len(columns)

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
            return lambda module, given, _: keep(name, module, given[0])

        known = {n: m for n, m in self.model.named_modules() if _is_known(m)}
        hooks = [module.register_forward_hook(hook(name)) for name, module in known.items()]
        try:
            self.outputs(state)
        finally:
            for each in hooks:
                each.remove()
        return {name: found.cpu().numpy() for name, found in sums.items()}

    def slopes(self, state: State, every: int = 1) -> dict[str, Floats]:
        """What each output changes by with each bias, [N, C] by the bias's name; N as `outputs`.

        A photo's own shift of a layer's output is what its outputs are differentiated by.
        """
        self.model.load_state_dict(state)
        biased = {n: m for n, m in self.model.named_modules() if isinstance(m, BIASED)}
        shifts: dict[str, Tensor] = {}

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
            def shift(module: nn.Module, _: tuple[Tensor], output: Tensor) -> Tensor:
                ones = [1] * (output.ndim - 2)
                width = len(module.bias)  # type: ignore[arg-type]
                sides = [*ones, width] if isinstance(module, nn.Linear) else [width, *ones]
                zeros = output.new_zeros(len(output), width).requires_grad_()
                return output + shifts.setdefault(f"{name}.bias", zeros).reshape(-1, *sides)

            return shift

        names = [n for n, m in biased.items() if m.bias is not None]
        hooks = [biased[name].register_forward_hook(hook(name)) for name in names]
        found: dict[str, list[Floats]] = {}
        try:
            for frame, part in self._batches(every, DIFFERENTIATED):
                shifts.clear()
                outputs = self._reduced(self.model(part), frame)
                for name, slope in _slopes(outputs, shifts).items():
                    found.setdefault(name, []).append(slope)
        finally:
            for each in hooks:
                each.remove()
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def _reduced(self, output: Tensor, frame: Frame) -> Tensor:
        """Outputs [N, K]; of a map its sum in the photo: of a density that is the prediction."""
        if not self.task.is_dense:
            return output.double().flatten(1)
        inside = torch.from_numpy(frame.inside(*output.shape[2:])).to(output.device)
        return (output.double() * inside).flatten(2).sum(2)

    def errors(self, state: State, photos: Sequence[Photo]) -> Floats:
        """The error of each photo, float64 [N]."""
        self.model.load_state_dict(state)
        predicted = predict(self.model, photos, self.preprocess, self.device, self.task)
        return self.task.errors(predicted, [self.task.truth(photo) for photo in photos])

    def search_loss(self, loss: float) -> float:
        """The loss that validation must prove for the test photos to be expected to prove `loss`.

        Of two equal networks the bound is 1.65 standard errors, which fall with the root of the
        number of photos. The smallest that passes is on the limit; that other photos prove it too
        in 95 of 100 draws needs room for as much again.
        """
        return loss * min(1.0, math.sqrt(len(self.test) / max(1, len(self.val))) / 2)


def _architecture(metadata: Mapping[str, str], path: Path) -> Mapping[str, object]:
    try:
        found = parse_json(metadata["architecture"])
        if isinstance(found, dict):
            return found
    except (KeyError, ValueError):
        pass
    raise KDError(
        "delta-architecture",
        "the file does not say of which architecture its weights are",
        where=str(path),
        fix="name student.safetensors as kdcompile distill wrote it, or leave out --spec: then no "
        "image is run and no accuracy is known",
    )


def _slopes(outputs: Tensor, shifts: Mapping[str, Tensor]) -> dict[str, Floats]:
    """Of outputs [N, K] by shifts [N, C] each, as [N K, C]; not of layers that mix photos."""
    shifts = {name: shift for name, shift in shifts.items() if len(shift) == len(outputs)}
    rows = [
        torch.autograd.grad(one.sum(), list(shifts.values()), retain_graph=True)
        for one in outputs.unbind(1)
    ]
    return {
        name: torch.stack(parts, 1).flatten(0, 1).double().cpu().numpy()
        for name, parts in zip(shifts, zip(*rows, strict=True), strict=True)
    }


def _is_known(module: nn.Module) -> bool:
    """Whether the layer is one product of its weight with columns of inputs."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _columns(module: nn.Module, given: Tensor) -> Tensor:
    """What a layer's weight is multiplied with, float64 [places, n], at some of its places."""
    if isinstance(module, nn.Conv2d):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = functional.pad(given, module._reversed_padding_repeated_twice, mode=mode)
        sides = (module.kernel_size, module.dilation, (0, 0), module.stride)
        given = functional.unfold(padded, *sides).transpose(1, 2)
    flat = given.reshape(-1, given.shape[-1])
    return flat[:: max(1, len(flat) // (PLACES * len(given)))].double()


LOSS = 0.005  # of the metric


def is_proven(judged: Judged, metric: Metric) -> bool:
    """Whether photos that a delta was chosen by prove its loss: an improvement does not count.

    Rounding makes no student better. What it seems to gain on the photos that it was chosen by is
    luck, which other photos take back; the width of the bound stays.
    """
    if judged.verdict != "passed" or judged.high is None:
        return False
    gain = max(0.0, -metric.worse_by(judged.value, judged.reference))
    return bool(judged.high + gain <= metric.allowance(judged.reference, judged.loss))


def judge(student: Student, errors: Floats, reference: Floats, loss: float) -> Judged:
    """The verdict of some images by their errors, against those of a reference.

    Both the metric and its 95 % bound, paired over the images, must be within `loss`, a share.

    Raises:
        KDError: `accuracy-images` or `accuracy-nonfinite`.
    """
    found = compare(
        student.metric, reference, errors, margin=loss, max_increase=loss, seed=student.spec.seed,
        find=bounds_of(student.metric),
    )  # fmt: skip
    shown = observed_text(student.metric, found.reference, found.value)
    return Judged(
        found.verdict,
        f"{shown}: {found.reason}",
        student.metric.name,
        found.value,
        found.reference,
        found.high,
        loss,
        len(errors),
    )
