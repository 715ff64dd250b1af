"""The board of a build: asked once, before anything is planned."""

from kdcompile.config.board import Board
from kdcompile.config.spec import Spec
from kdcompile.core.backends import find, is_served
from kdcompile.core.errors import KDError
from kdcompile.environment.doctor import version
from kdcompile.remote.open import evidence_of, facts_of
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
    if target.kind == "workstation" and backend == target.runtime:
        target = target.with_backend(str(about["backend_version"]))
    evidence = evidence_of(about, target, label)
    return Board(via, backend, label, facts_of(about), evidence), target


def _refuse_options(spec: Spec, target: Target) -> None:
    """An option is not ignored for a target whose backend has none of it."""
    options = spec.compile.model_dump(exclude={"backend", "workspace_mb"})
    able = find(target.runtime).capabilities(target).options
    for name, value in options.items():
        if value is None or value is False or name in able:
            continue
        raise KDError(
            "option-refused",
            f"compile.{name} is no option of {target.runtime}, which builds for {target.name}",
            where="[compile]",
            fix="leave it out, or name a device that has it: --target jetson",
        )


def backend_for(spec: Spec, target: Target, via: str | None) -> str | None:
    """The backend that builds; None where ONNX Runtime of this process is all that a build runs."""
    asked = spec.compile.backend
    if asked == "auto":
        if via is not None or is_served(target.runtime):
            return target.runtime
        return target.runtime if target.kind == "workstation" and version(target.runtime) else None
    return None if asked == "onnxruntime" and via is None else asked
