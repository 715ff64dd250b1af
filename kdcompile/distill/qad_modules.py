r"""Fake quantisation in a student's own modules: names, parameters and hooks stay as they are.

For activations x with the scale s = exp(l), and for weights w with a scale for each output
channel:

    y = s clamp(round(x / s), -128, 127)
    w' = t clamp(round(w / t), -128, 127),   t = max|w| / 127, a constant to the gradient

    dL/dx passes inside the range (straight-through)
    dL/dl = s sum dL/dy (round(x / s) - x / s inside, the end of the range outside)

The last line is LSQ's gradient (Esser et al., 2020, equation 3) of a scale that is trained by its
logarithm, as in TQT (Jain et al., 2020): it stays positive, and a step of Adam changes it by a
share of itself. LSQ's factor for the number of values is left out: Adam divides it away.

A batch norm after a layer needs no folding here: it multiplies each output channel by a number,
and rounding by channel with t commutes with that.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from kdcompile.distill.qad_layers import QadLayer
from kdcompile.kernels.fake_quant import fake_quant

NAME = "kd_log_scale"  # of the scales among the student's own parameters or buffers
LEVELS = 127
SMALLEST_SCALE = 2.0**-126  # as in calib.qdq: the smallest normal float32
DEAD_SCALE = 1.0


class Quantiser:
    """The activation scales of a student, and whether it is quantised yet.

    log_scale: float32 [tensors], which the student holds; trained if `learnt`, else set by
    observers. It is no module, since a network that is an nn.Sequential would run one.
    """

    def __init__(self, log_scale: Tensor, learnt: bool) -> None:
        self.log_scale, self.learnt, self.on = log_scale, learnt, False

    def scales(self) -> Tensor:
        """float32 [tensors]."""
        return self.log_scale.detach().exp()

    def __call__(self, x: Tensor, tensor: int) -> Tensor:
        """The activations x on the grid of their tensor's scale, in their type."""
        scale = self.scales()[tensor]
        y = fake_quant(x, scale)
        if not self.learnt:
            return y
        follows: Tensor = _ScaleGradient.apply(  # type: ignore[no-untyped-call]
            y, x.detach(), scale, self.log_scale[tensor]
        )
        return follows


class _ScaleGradient(torch.autograd.Function):
    """y as it is, and the gradient that it owes to the logarithm of its scale; keeps x alone."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, scale: Tensor, log_scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        wide = x.float()
        level = (wide / scale).round()
        inside = (level >= -LEVELS - 1) & (level <= LEVELS)
        error = level.clamp(-LEVELS - 1, LEVELS) * scale - torch.where(inside, wide, 0)
        return upstream[0], None, None, (upstream[0].float() * error).sum()


def weight_scales(weight: Tensor, axis: int | None) -> Tensor:
    """max|w| / 127 for each index of `axis`, or one; 1 where all is zero, as `calib.qdq` has it."""
    others = [i for i in range(weight.dim()) if i != axis]
    found = weight.detach().float().abs()
    largest = found.max() if axis is None else found.amax(others)
    scales = largest / LEVELS
    return torch.where(scales >= SMALLEST_SCALE, scales, DEAD_SCALE)


class FakeQuantised(nn.Module):
    """Mixed into a layer's class: it reads quantised input and weight while the quantiser is on."""

    kd_layer: tuple[Quantiser, int, int | None]  # with the tensor's number and the weight's axis

    @property
    def weight(self) -> Tensor:
        """The layer's weight, quantised while the quantiser is on."""
        quantiser, _, axis = self.kd_layer
        weight = cast(Tensor, self._parameters["weight"])
        if not quantiser.on:
            return weight
        return fake_quant(weight, weight_scales(weight, axis), axis=axis)

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """The layer's own forward."""
        quantiser, tensor, _ = self.kd_layer
        result: Tensor = super().forward(quantiser(x, tensor) if quantiser.on else x, *more)
        return result


def attach(student: nn.Module, layers: Sequence[QadLayer], learnt: bool) -> Quantiser:
    """Let the layers of a student be quantised, in place; off until its quantiser is put on.

    A copy of the student made afterwards has a quantiser of its own.
    """
    device = next(student.parameters()).device
    log_scale = torch.zeros(1 + max(layer.tensor for layer in layers), device=device)
    if learnt:
        student.register_parameter(NAME, nn.Parameter(log_scale))
    else:
        student.register_buffer(NAME, log_scale)
    quantiser = Quantiser(getattr(student, NAME), learnt)
    student.kd_quantiser = quantiser  # type: ignore[assignment]
    for layer in layers:
        module = student.get_submodule(layer.module)
        if not isinstance(module, FakeQuantised):  # a layer may be called more than once
            module.__class__ = _mixed(type(module))
        module.kd_layer = (quantiser, layer.tensor, layer.axis)  # type: ignore[assignment]
    return quantiser


def quantiser_of(student: nn.Module) -> Quantiser | None:
    """What `attach` gave a student or the one that it was copied from."""
    return getattr(student, "kd_quantiser", None)


def trained(student: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The student's own parameters, and the scales that are learnt: none for most students."""
    own: list[nn.Parameter] = []
    scales: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        (scales if name == NAME else own).append(parameter)
    return own, scales


def plain_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state without the scales: that of the architecture."""
    return {name: value for name, value in state.items() if name != NAME}


def _mixed(kind: type[nn.Module]) -> type[nn.Module]:
    return cast(type[nn.Module], type(f"FakeQuantised{kind.__name__}", (FakeQuantised, kind), {}))
