"""Load the teacher that a spec names, in any of its forms, and load and write weights."""

import inspect
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from kdcompile.config.spec import Spec, Teacher
from kdcompile.core.errors import KDError
from kdcompile.core.files import replacing
from kdcompile.core.user_code import load_factory
from kdcompile.models.fit import (
    check_fit,
    classes_of,
    integer_counters,
    with_new_classes,
    without_prefix,
)
from kdcompile.models.joined import with_joined_outputs
from kdcompile.models.rows import on_rows
from kdcompile.models.timm_network import TIMM, timm_factory
from kdcompile.models.weights import read_weights
from kdcompile.tasks.task import ports_of, task_of


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
    if ports is None and task_of(spec).joins_outputs:
        return with_joined_outputs(network)
    return network if ports is None else on_rows(network, ports)


def _load(teacher: Teacher, spec: Spec) -> nn.Module:
    named = {name: tuple(one.shape) for name, one in spec.export.inputs.items()}
    shape = named or spec.export.profile[1]
    if teacher.model:
        model = build_model(teacher.model, spec.folder, teacher.arguments)
        state, _ = read_weights(teacher.file, teacher.entry)
        classes = classes_of(model.state_dict(), without_prefix(model.state_dict(), state))
        if classes and takes_classes(teacher.model, spec.folder, teacher.arguments):
            arguments = {**teacher.arguments, "num_classes": classes}
            model = build_model(teacher.model, spec.folder, arguments)
        load_state(model, state, teacher.file)
    elif teacher.onnx is not None:
        from kdcompile.models.onnx_import import load_onnx

        model = _of_batches(load_onnx(teacher.onnx, shape), spec, teacher.onnx)
    else:
        from kdcompile.models.program import load_program

        model = _of_batches(load_program(teacher.file, shape), spec, teacher.file)
    return model.float().eval()


def _of_batches(model: nn.Module, spec: Spec, path: Path) -> nn.Module:
    """The network of a file, once it is seen to run on two images, which training does.

    One that is trained on rows needs no batches.

    Raises:
        KDError: `teacher-batch`.
    """
    if ports_of(spec) is not None:
        return model
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            made = model(torch.empty(2, *spec.export.profile[1][1:]))
        alone = [one.shape[0] == 2 for one in tree_leaves(made) if isinstance(one, Tensor)]
    except Exception:  # torch's, of shapes that do not fit
        alone = [False]
    if not all(alone):
        raise KDError(
            "teacher-batch",
            "the network in the file runs on one image alone",
            where=str(path),
            fix="export it with a dynamic batch (dynamic_shapes), or give it as teacher.model",
        )
    return model


def build_model(
    factory: str, folder: Path, arguments: Mapping[str, Any] | None = None
) -> nn.Module:
    """What the factory returns, which must be a module with weights.

    Args:
        factory: `file.py:name`, `package.module:name` or `timm:NAME`, whose own weights are not
            downloaded.
        folder: that a file is in.
        arguments: what it is called with, by keyword.

    Raises:
        KDError: `factory-arguments`, `factory-failed`, `factory-result`, or those of
            `load_factory` and `timm_factory`.
    """
    model = _call_factory(_factory(factory, folder), factory, arguments or {})
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


def _factory(name: str, folder: Path) -> Callable[..., Any]:
    if not name.startswith(TIMM):
        return load_factory(name, folder)
    return timm_factory(name, {})


def takes_classes(factory: str, folder: Path, arguments: Mapping[str, Any]) -> bool:
    """Whether a factory can be asked for a number of classes that the spec does not give."""
    if "num_classes" in arguments or factory.startswith(TIMM):
        return "num_classes" not in arguments
    try:
        return "num_classes" in inspect.signature(_factory(factory, folder)).parameters or (
            _makes_torchvision(factory)
        )
    except ValueError:  # written in C, it has no signature
        return False


def _makes_torchvision(factory: str) -> bool:
    """torchvision's factories pass their keywords on."""
    return factory.startswith("torchvision.models")


def _call_factory(make: Callable[..., Any], factory: str, arguments: Mapping[str, Any]) -> Any:
    try:
        inspect.signature(make).bind(**arguments)
    except TypeError as error:
        given = f"with {', '.join(arguments)}" if arguments else "without arguments"
        raise KDError(
            "factory-arguments",
            f"{factory} is called {given}: {error}",
            where=factory,
            fix="give each of its arguments a default, or set teacher.arguments = { NAME = VALUE }",
        ) from error
    except ValueError:  # written in C, it has no signature
        pass
    try:
        return make(**arguments)
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


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors, of any device and even shared, as a whole safetensors file or not at all."""
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        # as bytes: `save_file` would put another file in the place of the one that is held
        temporary.write_bytes(save(own, metadata=None if metadata is None else dict(metadata)))


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
    load_state(model, state, path, classes)
    return metadata


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    path: Path,
    classes: tuple[int, int] | None = None,
) -> None:
    """Load tensors that were read from a file, as `load_weights` does."""
    found = without_prefix(model.state_dict(), integer_counters(state), path)
    if classes is not None:
        found = with_new_classes(model.state_dict(), found, classes)
    check_fit(model.state_dict(), found, path)
    model.load_state_dict(found)
