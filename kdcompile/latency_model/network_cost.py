"""Predicted latency of a whole network on a target, and the precisions that it is predicted at.

The stage `compile` ships the fastest precision that is accurate enough (`backends.choose`). Before
a student is trained nobody knows which those are, so its cost is that of the fastest *predicted*
precision of the candidates. The budget, the plan and the explanation all use this module.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from onnx import ModelProto
from torch import nn

from kdcompile.backends.candidate_runner import teacher_precision
from kdcompile.calib.qdq import may_be_fp8
from kdcompile.config.spec import Spec
from kdcompile.core.backends import find
from kdcompile.core.files import scratch
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency_model.breakdown import StageCost, stage_costs
from kdcompile.latency_model.correction import scale_estimate
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.latency_model.predict import Estimate, estimate
from kdcompile.latency_model.workload import Kernel, Precision
from kdcompile.models.blocks import fold
from kdcompile.onnx_graph.in_graph import in_graph
from kdcompile.targets import Target


@dataclass(frozen=True)
class NetworkCost:
    """A network's kernels with the estimate that was made of them, a part for each."""

    kernels: Sequence[Kernel]
    estimate: Estimate
    shape: Sequence[int]

    @property
    def macs(self) -> int:
        """Multiply-adds of one inference."""
        return sum(kernel.macs for kernel in self.kernels)

    def at(self, ms: float) -> "NetworkCost":
        """The same with its parts in proportion to another latency, such as the measured one."""
        return replace(self, estimate=scale_estimate(self.estimate, ms / self.estimate.ms))

    def stages(self) -> list[StageCost]:
        """Its time by stage."""
        return stage_costs(self.kernels, self.estimate, self.shape)


# a tie goes to the first; bf16 is left out: it takes as long as fp16, before which it never ships
ORDER = ("int8", "fp16", "fp32", "fp8")


def candidate_precisions(spec: Spec, target: Target) -> tuple[str, ...]:
    """The precisions that may ship and have a price: the requested one, or for `auto` all.

    `mixed` has no price before its layers are chosen; fp16 bounds it, as it is no slower.
    """
    requested = spec.quantize.precision
    if requested != "auto":
        return ("fp16",) if requested == "mixed" else (requested,)
    able = find(target.runtime).capabilities(target)
    return tuple(
        precision
        for precision in ORDER
        if precision in target.precisions
        if precision != "fp8" or may_be_fp8(requested, target)
        if not able.refusal(precision, spec.compile.model_dump())
    )


def fastest(cost: Iterable[NetworkCost]) -> NetworkCost:
    """The one of a network's prices, one a precision, that it is expected to ship at."""
    return min(cost, key=lambda each: each.estimate.ms)


def paired_precision(precision: str, precisions: Sequence[str]) -> str:
    """What the teacher computes in next to a student, on a target that has `precisions`."""
    wanted = teacher_precision(precision)
    return wanted if wanted in precisions else "fp32"


def as_type(precision: str) -> Precision:
    """What the float32 of a network becomes at a precision; fp8 moves the bytes of int8."""
    return cast("Precision", {"fp8": "int8"}.get(precision, precision))


def params(module: nn.Module) -> int:
    """Number of parameters, biases included, each shared one counted once."""
    return sum(parameter.numel() for parameter in module.parameters())


class Network:
    """A network with its ONNX file at a fixed shape, in memory.

    Args:
        module: in inference mode, on the CPU; its blocks are folded, as for the real export.
        shape: input [N, C, H, W].
        model: its file, where there is one already.
        takes_pixels: price it as it is deployed with its preprocessing inside.

    Raises:
        KDError: of the export.
    """

    def __init__(
        self,
        module: nn.Module,
        shape: Sequence[int],
        model: ModelProto | None = None,
        takes_pixels: bool = False,
    ) -> None:
        self.module, self.shape = fold(module), list(shape)
        self.takes_pixels = takes_pixels
        self.model = self._exported() if model is None else model
        self._kernels: dict[Precision, list[Kernel]] = {}

    def _exported(self) -> ModelProto:
        fixed = (self.shape, self.shape, self.shape)
        with scratch() as folder:
            return onnx_from_module(self.module, Path(folder) / "network.onnx", fixed)

    def cost(self, target: Target, precision: str) -> NetworkCost:
        """Its kernels at a precision with their estimate.

        Raises:
            KDError: of `kernels_of` and `estimate`.
        """
        kind = as_type(precision)
        if kind not in self._kernels:
            self._kernels[kind] = kernels_of(*self._deployed(), kind)
        kernels = self._kernels[kind]
        return NetworkCost(kernels, estimate(kernels, target, precision), self.shape)

    def _deployed(self) -> tuple[ModelProto, list[int]]:
        """The file as it is deployed, and the shape of its input; constants have any values."""
        if not self.takes_pixels:
            return self.model, self.shape
        batch, channels, *sides = self.shape
        ones = [1.0] * channels
        return in_graph(self.model, ones, ones), [batch, *sides, channels]

    def fastest(self, target: Target, precisions: Sequence[str]) -> NetworkCost:
        """`cost` at the one of the precisions that is predicted to be the fastest."""
        return fastest(self.cost(target, precision) for precision in precisions)

    def record(self, target: Target, precisions: Sequence[str]) -> Mapping[str, Any]:
        """`macs`, `params`, and the estimate at each precision, as JSON values."""
        cost = {p: self.cost(target, p) for p in precisions}
        any_of_them = next(iter(cost.values()))
        return {
            "macs": any_of_them.macs,
            "params": params(self.module),
            **{p: asdict(found.estimate) for p, found in cost.items()},
        }
