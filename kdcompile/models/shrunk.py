"""Build a student from its architecture, untrained, or trained from its artifact."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.core.store import Artifact
from kdcompile.models.blocks import fold
from kdcompile.models.dropped import drop
from kdcompile.models.factory import build_model, load_teacher, load_weights
from kdcompile.models.joined import joins_outputs, with_joined_outputs
from kdcompile.models.resize import NORMS, narrow
from kdcompile.models.rows import on_rows, ports_of
from kdcompile.models.staged import StagedStudent

OUTPUT_STD = 0.01


def student_from_architecture(
    teacher: nn.Module, architecture: Mapping[str, Any], folder: Path
) -> nn.Module:
    """The untrained student, deterministic for an architecture (its `seed` included).

    Args:
        teacher: gives the code and every width that the architecture does not name.
        architecture: of family `shrink`, with `seed`, `modules` ({name: widths}: the constructor
            arguments that change), `parameters` ({name: [axis, width]} of those that no such module
            owns), `attributes` ({path: {name: number}} of other modules; both none where they are
            missing) and `dropped` (names of what becomes the identity, see
            `kdcompile.models.dropped`; none where it is missing); of family `staged`, as
            `kdcompile.models.staged` describes it; or with a factory `file.py:name` or `timm:NAME`
            as its family, the latter with `arguments`.
        folder: the spec's folder, for a factory.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(architecture["seed"])
        if architecture["family"] == "staged":
            student: nn.Module = StagedStudent(architecture)
            initialise(student)
            return student
        if architecture["family"] != "shrink":
            student = build_model(architecture["family"], folder, architecture.get("arguments", {}))
            if joins_outputs(teacher):
                return with_joined_outputs(student)
            ports = ports_of(teacher)
            return student if ports is None else on_rows(student, ports)
        student = copy.deepcopy(teacher).cpu()
        narrow(student, architecture)
        drop(student, architecture.get("dropped", ()))
        initialise(student)
    return student.requires_grad_(True)


def initialise(student: nn.Module) -> None:
    """He's initialisation (fan in, ReLU), zero biases, and a small output layer.

    A density is mostly zeros: an output that starts near zero spares the first steps.
    """
    last: nn.Module | None = None
    for module in student.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            last = module
        elif isinstance(module, NORMS):
            module.reset_parameters()
    if last is not None:
        nn.init.normal_(last.weight, std=OUTPUT_STD)  # type: ignore[arg-type]


def load_student(spec: Spec, distilled: Artifact, teacher: nn.Module | None = None) -> nn.Module:
    """The student as it is exported: trained, folded, in inference mode.

    Args:
        spec: of the build.
        distilled: artifact of stage `distill`.
        teacher: the network, where it is loaded already.
    """
    architecture = distilled.json("architecture.json")
    of = load_teacher(spec) if teacher is None else teacher
    student = student_from_architecture(of, architecture, spec.folder)
    load_weights(student, distilled.file("student.safetensors"))
    return fold(student.float().eval())
