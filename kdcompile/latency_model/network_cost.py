"""A network as the latency model sees it: the kernels of its ONNX file, priced on a target."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import nn

from kdcompile.core.files import scratch
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency_model.kernels import Kernel, Precision, kernels_of
from kdcompile.latency_model.precision import fastest
from kdcompile.latency_model.predict import estimate
from kdcompile.latency_model.priced import Priced
from kdcompile.models.blocks import fold
from kdcompile.targets import Target

AS_TYPE: dict[str, Precision] = {
    "fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8", "fp8": "int8",
}  # fmt: skip


def as_type(precision: str) -> Precision:
    """What the float32 of a network becomes at a precision; fp8 moves the bytes of int8."""
    return AS_TYPE[precision]


def params(module: nn.Module) -> int:
    """Number of parameters, biases included, each shared one counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


class Network:
    """A network with its ONNX file at a fixed shape, in memory.

    Args:
        module: in inference mode, on the CPU; its blocks are folded, as for the real export.
        shape: input [N, C, H, W].

    Raises:
        KDError: of the export.
    """

    def __init__(self, module: nn.Module, shape: Sequence[int]) -> None:
        self.module, self.shape = fold(module), list(shape)
        fixed = (self.shape, self.shape, self.shape)
        with scratch() as place:
            path = Path(place) / "network.onnx"
            self.model: ModelProto = onnx_from_module(self.module, path, fixed)
        self._kernels: dict[Precision, list[Kernel]] = {}

    def priced(self, target: Target, precision: str) -> Priced:
        """Its kernels at a precision with their estimate.

        Raises:
            KDError: of `kernels_of` and `estimate`.
        """
        kind = as_type(precision)
        if kind not in self._kernels:
            self._kernels[kind] = kernels_of(self.model, self.shape, kind)
        kernels = self._kernels[kind]
        return Priced(kernels, estimate(kernels, target, precision), self.shape)

    def fastest(self, target: Target, precisions: Sequence[str]) -> Priced:
        """`priced` at the one of the precisions that is predicted to be the fastest."""
        return fastest(self.priced(target, precision) for precision in precisions)

    def record(self, target: Target, precisions: Sequence[str]) -> Mapping[str, Any]:
        """`macs`, `params`, and the estimate at each precision, as JSON values."""
        priced = {p: self.priced(target, p) for p in precisions}
        any_of_them = next(iter(priced.values()))
        return {
            "macs": sum(kernel.macs for kernel in any_of_them.kernels),
            "params": params(self.module),
            **{p: asdict(found.estimate) for p, found in priced.items()},
        }
