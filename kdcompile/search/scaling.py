"""Families `shrink` and of the user's own: the widest that keeps the budget, or the one given."""

import json
from typing import Any

from torch import nn

from kdcompile.errors import KDError
from kdcompile.models.blocks import fold
from kdcompile.models.factory import read_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.choose import Candidate, met, reachable, widest
from kdcompile.search.cost import params
from kdcompile.search.latency import estimate
from kdcompile.search.network import Network, as_type
from kdcompile.search.shrink import architectures
from kdcompile.search.template import Template
from kdcompile.spec import Spec
from kdcompile.targets import Target


def scaled(
    spec: Spec, teacher: Network, target: Target, precisions: tuple[str, str]
) -> dict[str, Any]:
    """The architecture that the spec fixes, checked against the budget, or the widest that fits.

    `precisions` are those of the teacher, which a speed-up is against, and of the student.

    Raises:
        KDError: `budget-missed`, `budget-impossible`; those of a given student's file.
    """
    budget, student = spec.student.budget, spec.student
    whole = _Price(spec, teacher, target, precisions[0]).network(teacher, {"width": 1.0})
    price = _Price(spec, teacher, target, precisions[1])
    if student.init == "file" or student.family != "shrink":
        given = price(_given(spec, teacher.module))
        if not met(budget, given, whole):
            cost = (whole.latency.ms / given.latency.ms, given.latency.ms, given.macs)
            raise KDError(
                "budget-missed",
                f"the given student needs {given.latency.ms:.3g} ms and {given.macs:.3g} MACs",
                where="[student] budget",
                fix=f"set {reachable(budget, *cost)} or weaker, or give a smaller student",
            )
        return given.architecture
    shape = spec.export.profile[1]
    small = [shape[0], shape[1], *(min(side, 128) for side in shape[2:])]
    ratios = [budget.width] if budget.width is not None else []
    options = architectures(teacher.module, small, target.channel_tile, spec.seed, ratios)
    return widest(options, price, budget, whole).architecture


class _Price:
    """What a student costs: from the teacher's file, or from its own where that cannot be."""

    def __init__(self, spec: Spec, teacher: Network, target: Target, precision: str) -> None:
        self._spec, self._teacher = spec, teacher
        self._target, self._precision = target, precision
        self._template: Template | None = None
        self._untold = False  # the teacher's file does not tell which channels are where

    def __call__(self, architecture: dict[str, Any]) -> Candidate:
        student = student_from_architecture(
            self._teacher.module, architecture, self._spec.folder
        ).eval()
        template = self._of_teacher() if architecture["family"] == "shrink" else None
        if template is None:
            return self.network(Network(student, self._teacher.shape), architecture)
        kernels = template.at(architecture, as_type(self._precision))
        latency = estimate(kernels, self._target, self._precision)
        macs = sum(kernel.macs for kernel in kernels)
        return Candidate(architecture, macs, params(fold(student)), latency)

    def network(self, network: Network, architecture: dict[str, Any]) -> Candidate:
        """The cost of a network from its own file."""
        priced = network.priced(self._target, self._precision)
        macs = sum(kernel.macs for kernel in priced.kernels)
        return Candidate(architecture, macs, params(network.module), priced.estimate)

    def _of_teacher(self) -> Template | None:
        if self._template is None and not self._untold:
            try:
                teacher = self._teacher
                self._template = Template(teacher.model, teacher.module, teacher.shape)
            except KDError as error:
                if error.code != "template-unknown":
                    raise
                self._untold = True
        return self._template


def _given(spec: Spec, teacher: nn.Module) -> dict[str, Any]:
    if spec.student.init != "file" or ":" in spec.student.family:  # its own, whatever it loads
        return {"family": spec.student.family, "width": 1.0, "seed": spec.seed}
    assert spec.student.weights is not None, "the schema ties init and weights"
    _, metadata = read_weights(spec.student.weights)
    if "architecture" not in metadata:
        raise _unnamed(spec, "do not name their architecture")
    try:
        found: dict[str, Any] = json.loads(metadata["architecture"])
        student_from_architecture(teacher, found, spec.folder)
    except KDError:
        raise
    except Exception as error:  # by what was written there, or is not so in this teacher
        reason = f"{type(error).__name__}: {error}"
        raise _unnamed(
            spec, f"name an architecture that this teacher has not ({reason})"
        ) from error
    return found


def _unnamed(spec: Spec, problem: str) -> KDError:
    return KDError(
        "weights-architecture",
        f"the student's weights {problem}",
        where=str(spec.student.weights),
        fix="use a student.safetensors that kdcompile distill wrote for this teacher",
    )
