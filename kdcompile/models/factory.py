"""The teacher that a spec names, with its weights checked against its architecture."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdcompile.artifact import replacing
from kdcompile.errors import KDError
from kdcompile.factory import load_factory
from kdcompile.spec import Spec


def load_teacher(spec: Spec) -> nn.Module:
    """The teacher in float32 and inference mode.

    Raises:
        KDError: the factory, the weights file or the fit of the two is at fault.
    """
    model = build_model(spec.teacher.model, spec.folder)
    load_weights(model, spec.teacher.weights)
    return model.float().eval()


def build_model(factory: str, folder: Path) -> nn.Module:
    """What the factory returns, which must be a module.

    Raises:
        KDError: `factory-result`, or those of `load_factory`.
    """
    model = load_factory(factory, folder)()
    if not isinstance(model, nn.Module):
        raise KDError(
            "factory-result",
            f"{factory} gave a {type(model).__name__}",
            where=factory,
            fix="return a torch.nn.Module",
        )
    return model


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the file's metadata (empty for a pickled state_dict).

    Raises:
        KDError: `weights-missing` or `weights-unreadable`.
    """
    if not path.is_file():
        raise KDError("weights-missing", "there is no such file", str(path), "correct the path")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as stream:
                metadata = dict(stream.metadata() or {})
                names = list(stream.keys())
                return {name: stream.get_tensor(name) for name in names}, metadata
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise KDError(
            "weights-unreadable",
            f"the weights cannot be read safely: {str(error).splitlines()[0]}",
            where=str(path),
            fix="save them with safetensors.torch.save_file, or torch.save of a state_dict alone",
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise KDError(
            "weights-unreadable",
            "the file holds no plain state_dict",
            where=str(path),
            fix="torch.save(model.state_dict(), path), or safetensors",
        )
    return state, {}


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, of any device and even shared, as a whole safetensors file or not at all."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(own, temporary, metadata=None if metadata is None else dict(metadata))


def load_weights(model: nn.Module, path: Path) -> dict[str, str]:
    """Load a file into a model of the same architecture; returns the file's metadata.

    Raises:
        KDError: `weights-mismatch` with the first tensors that differ, or `weights-nonfinite`.
    """
    state, metadata = read_weights(path)
    own = model.state_dict()
    problems = [f"{n} is absent from the file" for n in own if n not in state]
    problems += [f"{n} is not in the model" for n in state if n not in own]
    problems += [
        f"{n} is {tuple(state[n].shape)}, the model has {tuple(t.shape)}"
        for n, t in own.items()
        if n in state and state[n].shape != t.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise KDError(
            "weights-mismatch",
            "; ".join(problems[:3]) + more,
            where=str(path),
            fix="name the factory that these weights were trained with",
        )
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise KDError(
                "weights-nonfinite",
                f"{name} holds NaN or infinity",
                where=str(path),
                fix="use a checkpoint from before the training diverged",
            )
    model.load_state_dict(state)
    return metadata
