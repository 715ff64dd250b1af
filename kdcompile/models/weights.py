"""Read files of weights: state_dicts, alone or in checkpoints, and safetensors, also in shards.

No code in a file is run, and no file is changed.
"""

import logging
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kdcompile.core.errors import KDError, nearest
from kdcompile.core.weight_files import INDEX, files_of, shards_of
from kdcompile.models.fit import check_form, save_alone

SAFETENSORS = ".safetensors"
DEEPEST = 3  # levels of a checkpoint at which a state_dict may lie
NEVER = ("optimizer", "optimizers", "optimizer_states", "scheduler", "lr_schedulers", "loops",
         "callbacks", "scaler")  # fmt: skip
ZIP, PICKLE = b"PK", b"\x80"  # how files of torch.save start
log = logging.getLogger("kdcompile")


def read_weights(path: Path, entry: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the file's metadata (empty but for one file of safetensors).

    Args:
        path: the file, or the index of its shards.
        entry: of a checkpoint with several state_dicts the one to take, `ema` or `ema.module`.

    Raises:
        KDError: `weights-missing`, `weights-unreadable`, `weights-unsafe`, `weights-form` or
            `weights-entry`.
    """
    if path.name.endswith(INDEX) and path.is_file():
        return _shards(path, entry), {}
    if not path.is_file():
        raise _missing(path)
    with path.open("rb") as stream:
        start = stream.read(2)
    if not start:
        raise _unreadable(path, "the file is empty", "copy or save it again")
    metadata: dict[str, str] = {}
    try:
        if path.suffix == SAFETENSORS:
            with safe_open(path, framework="pt") as opened:
                metadata, names = dict(opened.metadata() or {}), list(opened.keys())
                found = {name: opened.get_tensor(name) for name in names}
        else:
            _refuse_programs(path, start)
            _refuse_packed(path, start)
            found = _plain(path, torch.load(path, map_location="cpu", weights_only=True), entry)
    except KDError:
        raise
    except Exception as error:  # zipfile's, pickle's, safetensors' and torch's, by what is damaged
        raise _explain_failure(path, start, error) from error
    check_form(found, path)
    return found, metadata


def _missing(path: Path) -> KDError:
    if not path.is_dir():
        return KDError("weights-missing", "there is no such file", str(path), "correct the path")
    index = next(iter(sorted(path.glob(f"*{INDEX}"))), None)
    fix = "correct the path" if index is None else f"name the index of its shards: {index}"
    return KDError("weights-missing", "this is a folder, not a file", str(path), fix)


def _shards(index: Path, entry: str | None) -> dict[str, Tensor]:
    """All tensors of a model in shards, which are those that the index names."""
    found: dict[str, Tensor] = {}
    for shard in files_of(index)[1:]:
        found |= read_weights(shard, entry)[0]
    absent = sorted(set(shards_of(index)) - set(found))
    if absent:
        raise _unreadable(
            index, f"its shards do not hold {absent[0]}", "copy all files of the model again"
        )
    return found


def _refuse_programs(path: Path, start: bytes) -> None:
    """A zip of torch's that holds a program, and not tensors alone."""
    if start != ZIP or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        raise _unreadable(
            path,
            "the file is a TorchScript program, whose layers cannot be made smaller",
            "name the factory of the network that it was made from as teacher.model, and save its "
            f"weights: {save_alone(path, f'torch.jit.load({path.name!r}).state_dict()')}",
        )
    if any(name.startswith("models/") for name in names) and "archive_format" in names:
        raise _unreadable(
            path,
            "the file is a program of torch.export",
            f"set teacher.program = {str(path)!r}, without model and weights",
        )


def _refuse_packed(path: Path, start: bytes) -> None:
    """A zip that unpacks to more than it is: torch packs nothing, and takes what it finds.

    Raises:
        ValueError: it does.
    """
    if start == ZIP and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
        if size > path.stat().st_size:
            raise ValueError(f"it would unpack to {size} bytes")


def _explain_failure(path: Path, start: bytes, error: Exception) -> KDError:
    """Why a file was not read, and what helps."""
    text, pickled = str(error), start == ZIP or start[:1] == PICKLE
    code = re.search(r"Unsupported (?:global|class|operand)\W+(?:GLOBAL )?([\w.]+)", text)
    if pickled and code is not None:
        return KDError(
            "weights-unsafe",
            f"the file holds code ({code.group(1)}), which loading would run; it was not loaded",
            where=str(path),
            fix="where you trust it, load it there and save the tensors alone: " + save_alone(path),
        )
    if path.suffix == SAFETENSORS and pickled:
        return _unreadable(path, "torch.save wrote this file", f"rename it to {path.stem}.pt")
    if path.suffix == ".onnx":
        fix = f"set teacher.onnx = {str(path)!r}, without model and weights"
        return _unreadable(path, "the file is an ONNX network by its name", fix)
    if path.suffix != SAFETENSORS and not pickled:
        fix = f"save it with {save_alone(path)}; safetensors end in {SAFETENSORS}"
        return _unreadable(path, "torch.save did not write this file", fix)
    reason = (text.strip() or type(error).__name__).splitlines()[0]
    return _unreadable(path, f"the file is damaged: {reason}", "copy or save it again")


def _unreadable(path: Path, message: str, fix: str) -> KDError:
    return KDError("weights-unreadable", message, where=str(path), fix=fix)


def _plain(path: Path, saved: Any, entry: str | None) -> dict[str, Tensor]:
    """The state_dict that torch.save wrote, alone, as the only one of a checkpoint, or by name.

    Raises:
        KDError: `weights-unreadable` or `weights-entry`.
    """
    if _is_state(saved) and entry is None:
        return dict(saved)
    inside = dict(_states(saved))
    if entry is not None:
        if entry in inside:
            return dict(inside[entry])
        raise KDError(
            "weights-entry",
            f"the file has no state_dict {entry!r}{nearest(entry, inside)}",
            where=str(path),
            fix=f"set teacher.entry to one of {', '.join(inside)}"
            if inside
            else "leave teacher.entry out",
        )
    if len(inside) == 1:
        ((name, state),) = inside.items()
        log.info("%s: the weights under %r are taken", path.name, name)
        return dict(state)
    message, fix = "the file holds no plain state_dict", save_alone(path)
    if inside:
        message += f", but one under each of {', '.join(map(repr, inside))}"
        fix = f"say which: set teacher.entry = {next(iter(inside))!r}"
    raise _unreadable(path, message, fix)


def _states(saved: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The state_dicts in a checkpoint by their path, but for those of its training."""
    if depth >= DEEPEST or not isinstance(saved, Mapping):
        return
    for name, value in saved.items():
        if isinstance(name, str) and name not in NEVER:
            if _is_state(value):
                yield f"{path}{name}", value
            else:
                yield from _states(value, f"{path}{name}.", depth + 1)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in value.items())
    )
