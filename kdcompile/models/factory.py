"""Load the teacher that a spec names, and read and write weight files."""

import inspect
import logging
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdcompile.config.spec import Spec, Teacher
from kdcompile.core.errors import KDError
from kdcompile.core.files import replacing
from kdcompile.core.user_code import load_factory
from kdcompile.models.fit import (
    check_fit,
    check_form,
    integer_counters,
    with_new_classes,
    without_prefix,
)
from kdcompile.models.rows import on_rows
from kdcompile.models.timm_network import TIMM, timm_factory
from kdcompile.tasks.task import ports_of

SAFETENSORS = ".safetensors"
SAVE_ALONE = "torch.save(model.state_dict(), 'weights.pt'), or safetensors.torch.save_file"
WRAPPED = ("state_dict", "model_state_dict", "model", "net", "ema")  # how checkpoints call it
log = logging.getLogger("kdcompile")
ZIP, PICKLE = b"PK", b"\x80"  # how files of torch.save start


def load_teacher(spec: Spec) -> nn.Module:
    """The teacher in float32 and inference mode.

    Raises:
        KDError: the factory, the weights file or the fit of the two is at fault.
    """
    return _adapted(_load(spec.teacher, spec), spec)


def load_teachers(spec: Spec) -> list[nn.Module]:
    """Those of `[[teachers]]`, as `load_teacher` has them.

    Raises:
        KDError: those of `load_teacher`.
    """
    return [_adapted(_load(teacher, spec), spec) for teacher in spec.teachers]


def _adapted(network: nn.Module, spec: Spec) -> nn.Module:
    ports = ports_of(spec)
    return network if ports is None else on_rows(network, ports)


def _load(teacher: Teacher, spec: Spec) -> nn.Module:
    model = build_model(teacher.model, spec.folder)
    load_weights(model, teacher.weights)
    return model.float().eval()


def build_model(
    factory: str, folder: Path, arguments: Mapping[str, Any] = MappingProxyType({})
) -> nn.Module:
    """What the factory returns, which must be a module with weights.

    Args:
        factory: `file.py:function`, `package.module:function` or `timm:NAME`.
        folder: of the spec.
        arguments: of a network of timm.

    Raises:
        KDError: `factory-arguments`, `factory-failed`, `factory-result`, or those of
            `load_factory` and `timm_factory`.
    """
    is_timm = factory.startswith(TIMM)
    make = timm_factory(factory, arguments) if is_timm else load_factory(factory, folder)
    model = _call_factory(make, factory)
    if not isinstance(model, nn.Module):
        raise KDError(
            "factory-result",
            f"{factory} gave a {type(model).__name__}",
            where=factory,
            fix="return a torch.nn.Module",
        )
    if next(model.parameters(), None) is None:
        raise KDError(
            "factory-result",
            f"{factory} gave a {type(model).__name__} without weights",
            where=factory,
            fix="keep its layers as attributes or in a torch.nn.ModuleList, which registers them",
        )
    return model


def _call_factory(make: Callable[..., Any], factory: str) -> Any:
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise KDError(
            "factory-arguments",
            f"{factory} is called without arguments: {error}",
            where=factory,
            fix="give each of its arguments a default, or name a function that needs none",
        ) from error
    except ValueError:  # written in C, it has no signature
        pass
    try:
        return make()
    except KDError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        at = traceback.extract_tb(error.__traceback__)[-1]
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise KDError(
            "factory-failed",
            f"{factory} failed: {type(error).__name__}: {reason}",
            where=f"{at.filename}, line {at.lineno}",
            fix="fix the error in that file; kdcompile --debug distill shows the full trace",
        ) from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the file's metadata (empty for a pickled state_dict).

    Raises:
        KDError: `weights-missing`, `weights-unreadable` or `weights-unsafe`.
    """
    if not path.is_file():
        what = "this is a folder, not a file" if path.is_dir() else "there is no such file"
        raise KDError("weights-missing", what, str(path), "correct the path")
    with path.open("rb") as stream:
        start = stream.read(2)
    if not start:
        raise _unreadable(path, "the file is empty", "copy or save it again")
    try:
        if path.suffix == SAFETENSORS:
            with safe_open(path, framework="pt") as opened:
                metadata, names = dict(opened.metadata() or {}), list(opened.keys())
                found = {name: opened.get_tensor(name) for name in names}
        else:
            metadata = {}
            found = _plain(path, torch.load(path, map_location="cpu", weights_only=True))
    except KDError:
        raise
    except Exception as error:  # zipfile's, pickle's, safetensors' and torch's, by what is damaged
        raise _explain_failure(path, start, error) from error
    check_form(found, path)
    return found, metadata


def _explain_failure(path: Path, start: bytes, error: Exception) -> KDError:
    """Why a file was not read, and what helps."""
    text, pickled = str(error), start == ZIP or start[:1] == PICKLE
    code = re.search(r"Unsupported (?:global|class|operand)\W+(?:GLOBAL )?([\w.]+)", text)
    if pickled and code is not None:
        return KDError(
            "weights-unsafe",
            f"the file holds code ({code.group(1)}), which loading would run; it was not loaded",
            where=str(path),
            fix=f"where you trust it, load it there and save the tensors alone: {SAVE_ALONE}",
        )
    if path.suffix == SAFETENSORS and pickled:
        return _unreadable(path, "torch.save wrote this file", f"rename it to {path.stem}.pt")
    if path.suffix != SAFETENSORS and not pickled:
        fix = f"save it with {SAVE_ALONE}; safetensors end in {SAFETENSORS}"
        return _unreadable(path, "torch.save did not write this file", fix)
    reason = (text.strip() or type(error).__name__).splitlines()[0]
    return _unreadable(path, f"the file is damaged: {reason}", "copy or save it again")


def _unreadable(path: Path, message: str, fix: str) -> KDError:
    return KDError("weights-unreadable", message, where=str(path), fix=fix)


def _plain(path: Path, saved: Any) -> dict[str, Tensor]:
    """The state_dict that torch.save wrote, alone or as the only one of a checkpoint.

    Raises:
        KDError: `weights-unreadable`.
    """
    if _is_state(saved):
        return dict(saved)
    inside = [n for n, v in saved.items() if _is_state(v)] if isinstance(saved, Mapping) else []
    if len(inside) == 1 and inside[0] in WRAPPED:
        log.info("%s: the weights under %r are taken", path.name, inside[0])
        return dict(saved[inside[0]])
    message, fix = "the file holds no plain state_dict", SAVE_ALONE
    if inside:
        message += f", but one under each of {', '.join(map(repr, inside))}"
        fix = (
            f"save the one that is meant in a file of its own: torch.save(torch.load("
            f"{path.name!r})[{inside[0]!r}], 'weights.pt')"
        )
    raise _unreadable(path, message, fix)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in value.items())
    )


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, of any device and even shared, as a whole safetensors file or not at all."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(own, temporary, metadata=None if metadata is None else dict(metadata))


def load_weights(
    model: nn.Module, path: Path, classes: tuple[int, int] | None = None
) -> dict[str, str]:
    """Load a file into a model of the same architecture; returns the file's metadata.

    Args:
        model: loaded in place.
        path: the file.
        classes: how many the network of the file may have, and how many the model has: what is
            wider by that keeps the model's own values for the new classes, which come last.

    Raises:
        KDError: those of `read_weights` and of `check_fit`.
    """
    state, metadata = read_weights(path)
    state = without_prefix(model.state_dict(), integer_counters(state), path)
    if classes is not None:
        state = with_new_classes(model.state_dict(), state, classes)
    check_fit(model.state_dict(), state, path)
    model.load_state_dict(state)
    return metadata
