"""Weights as a delta takes them: read, held against each other, and named by a hash."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from kdcompile.core.errors import KDError
from kdcompile.models.fit import nonfinite
from kdcompile.models.weights import read_weights

State = Mapping[str, Tensor]
STUDENT = "student.safetensors"  # as the distill stage calls it


def read_student(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a weights file, or of the folder of a distill stage.

    Raises:
        KDError: `delta-weights`, a folder without a student's weights; those of `read_weights`;
            `weights-nonfinite`.
    """
    if path.is_dir():
        if not (path / STUDENT).is_file():
            raise _no_student(path)
        path = path / STUDENT
    state, metadata = read_weights(path)
    for name, tensor in state.items():
        if tensor.is_floating_point() and not tensor.to(torch.float64).isfinite().all():
            raise nonfinite(name, path)
    return state, metadata


def _no_student(path: Path) -> KDError:
    what = f"the folder has no {STUDENT}"
    if (path / "manifest.json").is_file():
        what = "a bundle carries the exported network, not the weights that it was exported from"
    return KDError(
        "delta-weights",
        what,
        where=str(path),
        fix=f"name the folder that kdcompile distill SPEC prints, or the {STUDENT} in it",
    )


def check_same_form(base: State, new: State, path: Path) -> None:
    """Refuse weights of another architecture than the base's.

    Raises:
        KDError: `delta-form`, with the first tensor that differs.
    """
    problems = [f"{name} is not in the new weights" for name in base if name not in new]
    problems += [f"{name} is not in the base" for name in new if name not in base]
    problems += [
        f"{name} is {_form(base[name])} in the base and {_form(new[name])} in the new weights"
        for name in base
        if name in new and _form(base[name]) != _form(new[name])
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise KDError(
            "delta-form",
            f"a delta is between weights of one architecture: {problems[0]}{more}",
            where=str(path),
            fix='train the update from the base: student.init = "file", student.weights = BASE; '
            "another architecture is delivered as a whole",
        )


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def weights_hash(state: State) -> str:
    """SHA-256 of names, types, shapes and bytes of tensors, whatever file they are in."""
    found = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(raw_bytes(tensor))
    return found.hexdigest()


def raw_bytes(tensor: Tensor) -> bytes:
    """A tensor's values as they lie in memory, row by row."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def half_size(state: State) -> int:
    """Bytes of all tensors, those of floats in fp16; without names and header."""
    return sum(
        tensor.numel() * (2 if tensor.is_floating_point() else tensor.element_size())
        for tensor in state.values()
    )
