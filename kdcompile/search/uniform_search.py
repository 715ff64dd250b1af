"""Families `shrink` and of the user's own: the widest that keeps the budget, or the one given."""

import json
from collections.abc import Sequence
from typing import Any

from torch import nn

from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.latency_model.network_cost import Network, as_type, params
from kdcompile.latency_model.precision import beside, candidates, fastest
from kdcompile.latency_model.predict import estimate
from kdcompile.latency_model.priced import Priced
from kdcompile.models.blocks import fold
from kdcompile.models.channels import Channels, trace
from kdcompile.models.factory import read_weights
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.budget import Candidate, met, reachable, widest
from kdcompile.search.spaces.pruned_kernels import Template
from kdcompile.search.spaces.uniform import GRID, students
from kdcompile.search.unshrunk import refuse_unshrunk
from kdcompile.targets import Target


def scaled(spec: Spec, teacher: Network, target: Target) -> tuple[dict[str, Any], list[str]]:
    """The architecture that the spec fixes, checked against the budget, or the widest that fits.

    A student is priced at the precision that is expected to ship (`precision`), the teacher at
    that which it is compared at. With it comes a sentence on what keeps the teacher's width, if
    anything does.

    Raises:
        KDError: `student-not-smaller`, `budget-impossible`; those of a given student's file.
    """
    budget, student = spec.student.budget, spec.student
    price = _Price(spec, teacher, target)
    teachers = {
        precision: price.network(teacher, {"width": 1.0}, [beside(precision, target.precisions)])
        for precision in price.precisions
    }
    if student.init == "file" or student.family != "shrink":
        given = price(_given(spec, teacher.module))
        whole = teachers[given.latency.precision]
        if not met(budget, given, whole):
            cost = (whole.latency.ms / given.latency.ms, given.latency.ms, given.macs)
            raise KDError(
                "student-not-smaller",
                f"the given student needs {given.latency.ms:.3g} ms and {given.macs:.3g} MACs",
                where="[student] budget",
                fix=f"set {reachable(budget, *cost)} or weaker, or give a smaller student",
            )
        return given.architecture, []
    channels, tile = trace(teacher.module, teacher.shape), target.channel_tile
    if budget.width is not None:
        teacher.fastest(target, price.precisions)  # refused where the target lacks a precision
        (chosen,) = students(channels, tile, spec.seed, [budget.width])
        return chosen, refuse_unshrunk(teacher.module, channels, chosen, budget.width, tile, budget)
    options = students(channels, tile, spec.seed)
    price.channels = channels
    try:
        return widest(options, price, budget, teachers).architecture, []
    except KDError as error:
        if error.code == "budget-impossible":  # better why, where the network gets no smaller
            refuse_unshrunk(teacher.module, channels, options[-1], 1 / GRID, tile, budget)
        raise


class _Price:
    """What a student costs: from the teacher's file, or from its own where that cannot be."""

    def __init__(self, spec: Spec, teacher: Network, target: Target) -> None:
        self._spec, self._teacher, self._target = spec, teacher, target
        self.precisions = candidates(spec, target)
        self.channels: Channels | None = None  # of the teacher, where it was traced already
        self._template: Template | None = None
        self._untold = False  # the teacher's file does not tell which channels are where

    def __call__(self, architecture: dict[str, Any]) -> Candidate:
        student = student_from_architecture(
            self._teacher.module, architecture, self._spec.folder
        ).eval()
        template = self._of_teacher() if architecture["family"] == "shrink" else None
        if template is None:
            own = Network(student, self._teacher.shape)
            return self.network(own, architecture, self.precisions)
        prices = []
        for precision in self.precisions:
            kernels = template.at(architecture, as_type(precision))
            latency = estimate(kernels, self._target, precision)
            prices.append(Priced(kernels, latency, self._teacher.shape))
        return _candidate(architecture, fold(student), fastest(prices))

    def network(
        self, network: Network, architecture: dict[str, Any], precisions: Sequence[str]
    ) -> Candidate:
        """The cost of a network from its own file, at the fastest of some precisions."""
        found = network.fastest(self._target, precisions)
        return _candidate(architecture, network.module, found)

    def _of_teacher(self) -> Template | None:
        if self._template is None and not self._untold:
            try:
                teacher = self._teacher
                self._template = Template(
                    teacher.model, teacher.module, teacher.shape, self.channels
                )
            except KDError as error:
                if error.code != "template-unknown":
                    raise
                self._untold = True
        return self._template


def _candidate(architecture: dict[str, Any], module: nn.Module, priced: Priced) -> Candidate:
    macs = sum(kernel.macs for kernel in priced.kernels)
    return Candidate(architecture, macs, params(module), priced.estimate)


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
