"""ONNX Runtime: the embedded default and the reference for parity."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdcompile.core.errors import KDError
from kdcompile.core.optional import need
from kdcompile.onnx_graph.session import cpu_session


@dataclass(frozen=True)
class OrtRunner:
    """A loaded ONNX network with one input; the runner knows what really executes it."""

    session: Any
    version: str
    provider: str
    name: str = "onnxruntime"

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 [N, C, H, W] to the network's first output.

        Raises:
            KDError: `input-refused`, the network does not take this shape or type, or it takes
                more than one input; `run-failed`.
        """
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
        if image.dtype != np.float32 or not agrees:
            raise KDError(
                "input-refused",
                f"{spec.name} takes float32 {spec.shape}, got {image.dtype} {list(image.shape)}",
                where="the network's input",
                fix="prepare images with the preprocessing that the network was exported with",
            )
        try:
            output: NDArray[np.float32] = self.session.run(None, {spec.name: image})[0]
        except Exception as error:  # the library's have no base of their own
            raise KDError(
                "run-failed",
                f"ONNX Runtime {self.version} does not run it: {error}",
                where=f"the network, on an input of {list(image.shape)}",
                fix="export it again: kdcompile export",
            ) from error
        return output


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
