"""The board of a build: asked once, before anything is planned."""

from kdcompile.config.board import Board
from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.environment.doctor import version
from kdcompile.remote.board import evidence_of, facts_of
from kdcompile.targets import Target


def find_board(spec: Spec, target: Target, via: str | None) -> tuple[Board | None, Target]:
    """The place that builds the engine, or None where this build makes none, and the target.

    A workstation's target takes the TensorRT that is found there.

    Raises:
        KDError: `option-refused`; the place does not answer, or is another device than the target.
        ToolMissingError: the backend is not installed there.
    """
    _refuse_options(spec, target)
    backend = backend_for(spec, target, via)
    if backend is None:
        return None, target
    from kdcompile.remote.open import open_place  # loads numpy, which planning alone does not need

    with open_place(via, backend) as place:
        about, label = place.about, place.label
    if target.kind == "workstation" and backend == "tensorrt":
        target = target.with_backend(str(about["backend_version"]))
    evidence = evidence_of(about, target, label)
    return Board(via, backend, label, facts_of(about), evidence), target


def _refuse_options(spec: Spec, target: Target) -> None:
    """An option of TensorRT's builder is not ignored for a target that has no TensorRT."""
    options = spec.compile.model_dump(
        include={"optimization_level", "deterministic", "dla", "sparsity"}
    )
    asked = [name for name, value in options.items() if value is not None and value is not False]
    if asked and not target.tensorrt:
        raise KDError(
            "option-refused",
            f"compile.{asked[0]} is of TensorRT's builder, and {target.name} has no TensorRT",
            where="[compile]",
            fix="leave it out, or name a device that has TensorRT: --target jetson",
        )


def backend_for(spec: Spec, target: Target, via: str | None) -> str | None:
    """The worker's backend; None where ONNX Runtime of this process is all that a build runs."""
    asked = spec.compile.backend
    if asked == "auto":
        if via is not None:
            return "tensorrt" if target.tensorrt else "onnxruntime"
        return "tensorrt" if target.kind == "workstation" and version("tensorrt") else None
    return None if asked == "onnxruntime" and via is None else asked
