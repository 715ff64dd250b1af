"""Quantisation-aware distillation: from a share of the steps on, the student learns in int8.

The layers that will be int8 in the ONNX file read inputs and weights that are rounded as the file
rounds them. The loss, the taps and the teacher are those of the recipe. From then on the moving
average that is validated, chosen and exported is the rounded one.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.splits import evenly
from kdcompile.distill.evaluate import in_inference
from kdcompile.distill.qad_layers import QadLayer, find_layers
from kdcompile.distill.qad_modules import LEVELS, Quantiser, attach, quantiser_of, weight_scales

if TYPE_CHECKING:
    from kdcompile.distill.phase import StageRun
    from kdcompile.distill.state import State
    from kdcompile.distill.training_context import TrainingContext
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from functools import partial

from kdcompile.calib.histogram import Histogram
from kdcompile.calib.observers import find_calibrator
from kdcompile.calib.table import tensor_range

OBSERVED_BATCHES, OBSERVED_CROPS = 4, 8
OBSERVE_EVERY = 50  # steps, where scales are observed
FROZEN_FROM = 0.5  # share of the quantised steps, where scales are observed
RECORD_PHOTOS = 16


def refuse_qad(spec: Spec) -> None:
    """Refuse to train for int8 a student of another precision, or in no step.

    Raises:
        KDError: `qad-precision` or `qad-steps`.
    """
    if not spec.quantize.qad:
        return
    if spec.quantize.precision not in ("auto", "int8", "mixed"):
        raise KDError(
            "qad-precision",
            f"quantize.qad trains for int8, and quantize.precision is {spec.quantize.precision}",
            where="[quantize] qad",
            fix='set quantize.qad = false, or quantize.precision = "int8"',
        )
    if spec.distill.steps == 0:
        raise _no_steps()


def _no_steps() -> KDError:
    return KDError(
        "qad-steps",
        "quantisation-aware distillation has no step to train in",
        where="[distill] steps",
        fix="set distill.steps to 1 or more, or quantize.qad = false",
    )


def make_quantisable(spec: Spec, student: nn.Module, side: int) -> list[QadLayer]:
    """Attach a quantiser to a student, in place, where the spec asks for one; it is off.

    Args:
        spec: its sections distill, export and quantize.
        student: in float32, on its device.
        side: of a crop.

    Raises:
        KDError: `qad-precision`, or those of `find_layers`.
    """
    if not spec.quantize.qad:
        return []
    refuse_qad(spec)
    device = next(student.parameters()).device
    example = torch.zeros(1, spec.export.profile[1][1], side, side, device=device)
    layers = find_layers(student, example)
    attach(student, layers, learnt=spec.quantize.qad_scales == "learnt")
    return layers


class Qad:
    """When the student of a training is quantised, and with which scales.

    Args:
        setting: its student and moving average have quantisers.
        total: steps of the whole training.
        done: those that a checkpoint has finished; it has the scales too.

    start: the first step that is quantised; there is always one.
    """

    def __init__(self, setting: "TrainingContext", total: int, done: int = 0) -> None:
        if total == 0:
            raise _no_steps()
        self._setting, self._options = setting, setting.spec.quantize
        self.start = min(total - 1, round(total * self._options.qad_start))
        self._frozen = self.start + FROZEN_FROM * (total - self.start)
        switch(setting, on=done > self.start)

    def before(self, run: "StageRun", step: int, state: "State") -> None:
        """What is due before a step of the training is run: quantise, or observe again.

        What validated best until then was another network, so the choice begins anew.

        Raises:
            KDError: `calib-nonfinite` or `execution-failed`.
        """
        if step == self.start:
            self._observe(run, step, share=1.0)
            switch(self._setting, on=True)
            state.value, state.scores, state.best_step, state.best = float("nan"), {}, 0, {}
            run.choose(None)
            how = {"from_step": step, "execution": run.execution.to_json()}
            state.stages[run.plan.name]["qad"] = how
        elif self._is_observed_again(step):
            self._observe(run, step, share=0.5)

    def _is_observed_again(self, step: int) -> bool:
        observed = self._options.qad_scales == "observed" and self.start < step < self._frozen
        return observed and (step - self.start) % OBSERVE_EVERY == 0

    @torch.no_grad()
    def _observe(self, run: "StageRun", step: int, share: float) -> None:
        """Move the scales (their logarithms) by a share towards what the calibrator chooses."""
        setting, quantiser = self._setting, _own(self._setting.student)
        crops = (
            run.shared_crops(OBSERVED_CROPS, step * OBSERVED_BATCHES + i).images
            for i in range(OBSERVED_BATCHES)
        )
        histograms = observe(setting.student, setting.layers, crops)
        found = torch.tensor(chosen_scales(histograms, self._options.calibrator)).log()
        found = setting.processes.mean(found).to(quantiser.log_scale.device)
        quantiser.log_scale.lerp_(found, share)
        if not quantiser.on:
            _own(setting.ema).log_scale.copy_(quantiser.log_scale)

    def describe(self) -> dict[str, Any]:
        """How the student was quantised, for the report."""
        layers = self._setting.layers
        return {
            "scales": self._options.qad_scales,
            "calibrator": self._options.calibrator,
            "from_step": self.start,
            "layers": [layer.module for layer in layers],
            "tensors": 1 + max(layer.tensor for layer in layers),
        }

    def record(self, photos: Sequence[Photo]) -> dict[str, Any]:
        """What `calib.qad_table` needs: the scales of the moving average, and what they saw.

        Args:
            photos: of the training; a few of them, whole, give the ranges that are reported.
        """
        setting, ema = self._setting, self._setting.ema
        few = evenly(photos, RECORD_PHOTOS)
        histograms = observe(ema, setting.layers, self._whole(few))
        scales = _own(ema).scales().cpu().tolist()
        tensors = [
            {
                "scale": scale,
                "saturation": histogram.clipped(LEVELS * scale),
                "minimum": histogram.minimum,
                "maximum": histogram.maximum,
            }
            for scale, histogram in zip(scales, histograms, strict=True)
        ]
        return self.describe() | {
            "images": [{"name": photo.name, "sha256": photo.sha256()} for photo in few],
            "tensors": tensors,
            "layers": [_layer_record(ema, layer) for layer in setting.layers],
        }

    def _whole(self, photos: Sequence[Photo]) -> Iterator[Tensor]:
        prepare, device = self._setting.preprocess, self._setting.device
        for photo in photos:
            yield torch.from_numpy(prepare.input_of(photo)).to(device)


def mean_seconds(run: "StageRun", measure: Callable[[], float]) -> float:
    """Seconds of a step, of those that are quantised and those that are not in their shares."""
    plain, setting = measure(), run.setting
    if not setting.layers:
        return plain
    switch(setting, on=True)
    run.choose(None)
    quantised = measure()
    switch(setting, on=False)
    share = setting.spec.quantize.qad_start
    return share * plain + (1 - share) * quantised


def known_mode(described: dict[str, Any] | None) -> Any:
    """How a stage that was left ran last: its execution mode."""
    return described and described.get("qad", described)["execution"]["mode"]


def switch(setting: "TrainingContext", on: bool) -> None:
    """Let student and moving average read rounded inputs and weights, or their own."""
    _own(setting.student).on = _own(setting.ema).on = on


def is_quantised(setting: "TrainingContext") -> bool:
    """Whether the student of a training reads rounded inputs and weights now."""
    return bool(setting.layers) and _own(setting.student).on


def _own(network: nn.Module) -> Quantiser:
    found = quantiser_of(network)
    assert found is not None, "make_quantisable gave it one"
    return found


def _layer_record(network: nn.Module, layer: QadLayer) -> dict[str, Any]:
    """A layer's weight scales as trained, and as they are with its batch norm folded in."""
    weight = network.state_dict()[f"{layer.module}.weight"]
    scales = weight_scales(weight, layer.axis)
    folded = scales
    if layer.norm is not None:
        norm: Any = network.get_submodule(layer.norm)
        factor = (norm.running_var + norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * norm.weight.detach()
        shape = [-1 if i == layer.axis else 1 for i in range(weight.dim())]
        folded = weight_scales(weight * factor.view(shape), layer.axis)
    return {
        "module": layer.module,
        "tensor": layer.tensor,
        "weight_scales": scales.flatten().cpu().tolist(),
        "folded_scales": folded.flatten().cpu().tolist(),
    }


@torch.no_grad()
def observe(
    student: nn.Module, layers: Sequence[QadLayer], images: Iterable[Tensor]
) -> list[Histogram]:
    """A histogram for each activation scale, of what the layers read before it is rounded.

    The student runs in inference mode and in float32, quantised or not as it is.

    Args:
        student: left in the mode that it is in.
        layers: from `find_layers`.
        images: batches [N, C, H, W] on the student's device.

    Raises:
        KDError: `calib-nonfinite`.
    """
    histograms = [Histogram() for _ in range(1 + max(layer.tensor for layer in layers))]
    with in_inference(student):
        for batch in images:
            with torch.autocast(batch.device.type, enabled=False), _inputs(student, layers) as seen:
                student(batch.float())
            for tensor, values in seen:
                histograms[tensor].add(values.float().cpu().numpy())
    return histograms


def chosen_scales(histograms: Iterable[Histogram], calibrator: str) -> list[float]:
    """The scale that a calibrator chooses for each tensor."""
    choose = find_calibrator(calibrator)
    return [tensor_range(choose(h), 0.0, h.minimum, h.maximum).scale for h in histograms]


@contextmanager
def _inputs(student: nn.Module, layers: Sequence[QadLayer]) -> Iterator[list[tuple[int, Tensor]]]:
    """(tensor, values) of each call; a tensor that two layers read is taken from the first."""
    seen: list[tuple[int, Tensor]] = []
    known: set[int] = set()

    def look(tensor: int, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) not in known:
            known.add(id(inputs[0]))
            seen.append((tensor, inputs[0]))

    with ExitStack() as hooks:
        for name, tensor in {layer.module: layer.tensor for layer in layers}.items():
            module = student.get_submodule(name)
            hooks.enter_context(module.register_forward_pre_hook(partial(look, tensor)))
        yield seen
