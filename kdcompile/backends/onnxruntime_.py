"""ONNX Runtime: the embedded default and the reference for parity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.backends.base import Capabilities, register
from kdcompile.backends.tensorrt_ import gpu_differences
from kdcompile.core.errors import KDError
from kdcompile.core.optional import need
from kdcompile.onnx_graph.session import (
    NUMPY_TYPES,
    ROW_AXES,
    cpu_session,
    ports_of_session,
    run_session,
)
from kdcompile.targets import EXPORT_OPSET

if TYPE_CHECKING:
    from kdcompile.backends.base import Description
    from kdcompile.targets import Target

OPSETS = (7, EXPORT_OPSET)  # the newest is what kdcompile writes: ONNX Runtime reads more


@dataclass(frozen=True)
class OrtRunner:
    """A loaded ONNX network; the runner knows what really executes it."""

    session: Any
    version: str
    provider: str
    name: str = "onnxruntime"

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 [N, C, H, W] to the network's first output, or a row of its inputs to one of all.

        Raises:
            KDError: `input-refused`, the network does not take this shape or type, or it takes
                more than one input; `run-failed`.
        """
        self._check(image)
        try:
            return run_session(self.session, image)
        except Exception as error:  # the library's have no base of their own
            raise KDError(
                "run-failed",
                f"ONNX Runtime {self.version} does not run it: {error}",
                where=f"the network, on an input of {list(image.shape)}",
                fix="export it again: kdcompile export",
            ) from error

    def _check(self, image: NDArray[np.float32]) -> None:
        if image.ndim == ROW_AXES:
            width = ports_of_session(self.session).width
            if image.shape != (1, width):
                raise KDError(
                    "input-refused",
                    f"its inputs are {width} values, the sample has {list(image.shape)}",
                    where="the network's inputs",
                    fix="give the inputs that the network was exported with",
                )
            return
        spec, *others = self.session.get_inputs()
        if others:
            raise KDError(
                "input-refused",
                f"it takes {', '.join(i.name for i in (spec, *others))}, where one image is given",
                where="the network's inputs",
                fix="use a network with one input",
            )
        agrees = len(spec.shape) == image.ndim and all(
            not isinstance(want, int) or want == have
            for want, have in zip(spec.shape, image.shape, strict=True)
        )
        kind = NUMPY_TYPES.get(spec.type, spec.type)
        if image.dtype != kind or not agrees:
            raise KDError(
                "input-refused",
                f"{spec.name} takes {kind} {spec.shape}, got {image.dtype} {list(image.shape)}",
                where="the network's input",
                fix="prepare images with the preprocessing that the network was exported with",
            )


@register("onnxruntime")
class OnnxRuntime:
    """ONNX Runtime on a CPU, by the agent or in this process; its kernels know no bf16."""

    title, compiles = "ONNX Runtime", False
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8", "mixed", "fp8")

    def capabilities(self, target: "Target") -> Capabilities:
        """Whatever file a precision has; no option of a builder."""
        return Capabilities(self.precisions, OPSETS)

    def differences(self, target: "Target", about: Mapping[str, Any]) -> list[str] | None:
        """None: it stands in for a board, and a CPU target is any CPU."""
        return None


@register("onnxruntime-cuda")
class OnnxRuntimeCuda(OnnxRuntime):
    """ONNX Runtime on an NVIDIA GPU; what ships on a Jetson is TensorRT."""

    def differences(self, target: "Target", about: Mapping[str, Any]) -> list[str] | None:
        """Of a workstation its GPU's compute capability."""
        return None if target.is_foreign else gpu_differences(target, about)


@register("onnxruntime-tensorrt")
class OnnxRuntimeTensorRT(OnnxRuntimeCuda):
    """ONNX Runtime on an NVIDIA GPU, by the TensorRT that it was built with."""

    precisions = ("fp32", "fp16", "int8", "mixed")


if TYPE_CHECKING:
    _described: Description = OnnxRuntime()  # holds it against the protocol


def open_session(
    path: Path,
    threads: int | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    as_written: bool = False,
) -> OrtRunner:
    """Load an ONNX file.

    Args:
        path: the file.
        threads: of one operator; None leaves the choice to the library.
        providers: execution providers, the wanted one first; the first must be the one that runs.
        as_written: compute each Q/DQ pair where it stands and keep biases float32, as TensorRT
            does. Else ONNX Runtime quantises biases too and fuses pairs into integer kernels: right
            where it is itself what ships.

    Raises:
        KDError: `onnx-missing`, `onnx-refused`, or `provider-fallback` where the first provider
            is absent or declined.
        ToolMissingError: onnxruntime is not installed.
    """
    ort = need("onnxruntime", "cpu", "running ONNX")
    if not path.is_file():
        raise KDError("onnx-missing", f"{path.name} does not exist", str(path), "build it again")
    if providers[0] not in ort.get_available_providers():
        raise _fallback(providers[0], f"this onnxruntime has {ort.get_available_providers()}", path)
    try:
        session = cpu_session(path, as_written, threads=threads, providers=providers)
    except Exception as error:  # neither library's have a base of their own
        raise KDError(
            "onnx-refused",
            f"ONNX Runtime {ort.__version__} does not load {path.name}: {error}",
            where=str(path),
            fix="export it again: kdcompile export",
        ) from error
    if session.get_providers()[0] != providers[0]:
        raise _fallback(providers[0], f"the session runs on {session.get_providers()[0]}", path)
    return OrtRunner(session, str(ort.__version__), providers[0])


def _fallback(wanted: str, found: str, path: Path) -> KDError:
    return KDError(
        "provider-fallback",
        f"{wanted} was asked for, but {found}",
        where=str(path),
        fix="install the onnxruntime that has the provider (kdcompile doctor), or ask for another",
    )
