"""A student from its architecture: the teacher's code with other widths and fresh weights."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcompile.models.dropped import drop
from kdcompile.models.factory import build_model
from kdcompile.models.staged import StagedStudent

RESIZABLE = (
    nn.Conv1d,
    nn.Conv2d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
)
OUTPUT_STD = 0.01


def student_from_architecture(
    teacher: nn.Module, architecture: Mapping[str, Any], folder: Path
) -> nn.Module:
    """The untrained student, deterministic for an architecture (its `seed` included).

    Args:
        teacher: gives the code and every width that the architecture does not name.
        architecture: of family `shrink`, with `seed`, `modules` ({name: widths}: the constructor
            arguments that change) and `dropped` (names of what becomes the identity, see
            `kdcompile.models.dropped`; none where it is missing); of family `staged`, as
            `kdcompile.models.staged` describes it; or with a factory `file.py:name` as its family.
        folder: the spec's folder, for a factory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(architecture["seed"])
        if architecture["family"] == "staged":
            student: nn.Module = StagedStudent(architecture)
            initialise(student)
            return student
        if architecture["family"] != "shrink":
            return build_model(architecture["family"], folder)
        student = copy.deepcopy(teacher).cpu()
        for name, widths in architecture["modules"].items():
            owner, _, leaf = name.rpartition(".")
            setattr(
                student.get_submodule(owner), leaf, _resized(student.get_submodule(name), widths)
            )
        drop(student, architecture.get("dropped", ()))
        initialise(student)
    return student.requires_grad_(True)


def _resized(module: nn.Module, widths: Mapping[str, int]) -> nn.Module:
    """A module of the same kind with some of its widths replaced."""
    kind = type(module)
    arguments = {name: getattr(module, name) for name in _arguments(module)} | dict(widths)
    if isinstance(
        module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.ConvTranspose1d | nn.ConvTranspose2d
    ):
        arguments["bias"] = module.bias is not None
    return kind(**arguments)


def _arguments(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.Linear):
        return ("in_features", "out_features")
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return ("num_features", "eps", "momentum", "affine", "track_running_stats")
    shared = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    more = ("groups", "padding_mode")
    transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)
    return (*shared, *more, "output_padding") if transposed else (*shared, *more)


def initialise(student: nn.Module) -> None:
    """He's initialisation (fan in, ReLU), zero biases, and a small output layer.

    A density is mostly zeros: an output that starts near zero spares the first steps.
    """
    last: nn.Module | None = None
    for module in student.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            last = module
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
    if last is not None:
        nn.init.normal_(last.weight, std=OUTPUT_STD)  # type: ignore[arg-type]
