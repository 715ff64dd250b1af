"""TensorRT, which the agent builds, loads and times with: what it can do for a target."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdcompile.backends.base import Capabilities, register
from kdcompile.remote.same_board import differences
from kdcompile.targets.rules_file import tables

if TYPE_CHECKING:
    from kdcompile.backends.base import Description
    from kdcompile.targets import Target

OLDEST_OPSET = 7
OPTIONS = frozenset({"optimization_level", "deterministic", "dla", "tf32"})


@register("tensorrt")
class TensorRT:
    """TensorRT on an NVIDIA GPU."""

    title, compiles = "TensorRT", True
    precisions = ("fp32", "fp16", "bf16", "int8", "fp8", "mixed")

    def capabilities(self, target: "Target") -> Capabilities:
        """By the GPU's compute capability, its DLAs and the target's TensorRT."""
        able = {*target.precisions, *(("mixed",) if "int8" in target.precisions else ())}
        limits = {rule.code: rule.needs for rule in tables().rules}
        return Capabilities(
            tuple(p for p in self.precisions if p in able),
            (OLDEST_OPSET, target.max_opset),
            options=OPTIONS,
            dla=target.dla,
            dla_precisions=tuple(limits["dla-precision"]["dla_precisions"]),
        )

    def differences(self, target: "Target", about: Mapping[str, Any]) -> list[str] | None:
        """Of a Jetson module, memory and generation; of a workstation the compute capability."""
        if target.is_foreign:
            return differences(target.to_json(), about)
        return gpu_differences(target, about)


if TYPE_CHECKING:
    _described: Description = TensorRT()  # holds it against the protocol


def gpu_differences(target: "Target", about: Mapping[str, Any]) -> list[str] | None:
    """The compute capability of a GPU that is another than the target's; None without a GPU."""
    if about["gpu"] is None:
        return None
    here, wanted = about["gpu"]["compute_capability"], target.compute_capability
    return [] if here == wanted else [f"compute capability {here}, the target has {wanted}"]
