"""Uniform search (`shrink`): the widest student within the budget, or the one that is given."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import nn

from kdcompile.config.spec import Budget, Spec
from kdcompile.core.errors import KDError
from kdcompile.latency_model.network_cost import (
    Network,
    NetworkCost,
    as_type,
    candidate_precisions,
    fastest,
    paired_precision,
    params,
)
from kdcompile.latency_model.predict import estimate
from kdcompile.models.blocks import fold
from kdcompile.models.channel_groups import Channels
from kdcompile.models.channels import trace
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.models.weights import read_weights
from kdcompile.search.pareto import Point, impossible, keeps, reachable
from kdcompile.search.spaces.pruned import GRID, students
from kdcompile.search.spaces.pruned_kernels import Template
from kdcompile.search.unshrunk import refuse_unshrunk
from kdcompile.targets import Target


def choose_width(spec: Spec, teacher: Network, target: Target) -> tuple[dict[str, Any], list[str]]:
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
        precision: price.network(
            teacher, {"width": 1.0}, [paired_precision(precision, target.precisions)]
        )
        for precision in price.precisions
    }
    if student.init == "file" or student.family != "shrink":
        given = price(_given_architecture(spec, teacher.module))
        whole = teachers[given.latency.precision]
        if not keeps(budget, given, whole):
            cost = (whole.ms / given.ms, given.ms, given.macs)
            raise KDError(
                "student-not-smaller",
                f"the given student needs {given.ms:.3g} ms and {given.macs:.3g} MACs",
                where="[student] budget",
                fix=f"set {reachable(budget, *cost)} or weaker, or give a smaller student",
            )
        return dict(given.architecture), []
    channels, tile = trace(teacher.module, teacher.shape), target.channel_tile
    if budget.width is not None:
        teacher.fastest(target, price.precisions)  # refused where the target lacks a precision
        (chosen,) = students(channels, tile, spec.seed, [budget.width])
        return chosen, refuse_unshrunk(teacher.module, channels, chosen, budget.width, tile, budget)
    options = students(channels, tile, spec.seed)
    price.channels = channels
    try:
        return dict(widest(options, price, budget, teachers).architecture), []
    except KDError as error:
        if error.code == "budget-impossible":  # better why, where the network gets no smaller
            refuse_unshrunk(teacher.module, channels, options[-1], 1 / GRID, tile, budget)
        raise


def widest(
    architectures: Sequence[dict[str, Any]],
    price: Callable[[dict[str, Any]], Point],
    budget: Budget,
    teachers: Mapping[str, Point],
) -> Point:
    """The first candidate in falling width that keeps the budget, found by bisection.

    Cost falls with width but for the odd rounding, so the neighbours that bisection ends at are
    both priced.

    Args:
        architectures: in falling width.
        price: of one of them.
        budget: what is to be kept.
        teachers: what a student of each precision is compared with.

    Raises:
        KDError: `budget-impossible`, naming the smallest reachable cost.
    """
    low, high = 0, len(architectures) - 1
    best = price(architectures[high])
    if not keeps(budget, best, teachers[best.latency.precision]):
        raise impossible(budget, best, teachers[best.latency.precision])
    while low < high:
        middle = (low + high) // 2
        candidate = price(architectures[middle])
        if keeps(budget, candidate, teachers[candidate.latency.precision]):
            best, high = candidate, middle
        else:
            low = middle + 1
    return best


class _Price:
    """What a student costs: from the teacher's file, or from its own where that cannot be."""

    def __init__(self, spec: Spec, teacher: Network, target: Target) -> None:
        self._spec, self._teacher, self._target = spec, teacher, target
        self.precisions = candidate_precisions(spec, target)
        self.channels: Channels | None = None  # of the teacher, where it was traced already

    def __call__(self, architecture: dict[str, Any]) -> Point:
        student = student_from_architecture(
            self._teacher.module, architecture, self._spec.folder
        ).eval()
        template = self._template if architecture["family"] == "shrink" else None
        if template is None:
            own = Network(student, self._teacher.shape)
            return self.network(own, architecture, self.precisions)
        prices = []
        for precision in self.precisions:
            kernels = template.at(architecture, as_type(precision))
            latency = estimate(kernels, self._target, precision)
            prices.append(NetworkCost(kernels, latency, self._teacher.shape))
        return _candidate(architecture, fold(student), fastest(prices))

    def network(
        self, network: Network, architecture: dict[str, Any], precisions: Sequence[str]
    ) -> Point:
        """The cost of a network from its own file, at the fastest of some precisions."""
        found = network.fastest(self._target, precisions)
        return _candidate(architecture, network.module, found)

    @cached_property
    def _template(self) -> Template | None:
        """The teacher's file; None where it is not known which channels are where."""
        teacher = self._teacher
        try:
            return Template(teacher.model, teacher.module, teacher.shape, self.channels)
        except KDError as error:
            if error.code != "template-unknown":
                raise
            return None


def _candidate(architecture: dict[str, Any], module: nn.Module, cost: NetworkCost) -> Point:
    nothing = math.nan
    return Point(architecture, cost.estimate, nothing, nothing, "proxy", cost.macs, params(module))


def _given_architecture(spec: Spec, teacher: nn.Module) -> dict[str, Any]:
    if spec.student.init != "file" or ":" in spec.student.family:  # its own, whatever it loads
        return {"family": spec.student.family, "width": 1.0, "seed": spec.seed}
    assert spec.student.weights is not None, "the schema ties init and weights"
    _, metadata = read_weights(spec.student.weights)
    if "architecture" not in metadata:
        raise _unknown_architecture(spec, "do not name their architecture")
    try:
        found: dict[str, Any] = json.loads(metadata["architecture"])
        student_from_architecture(teacher, found, spec.folder)
    except KDError:
        raise
    except Exception as error:  # by what was written there, or is not so in this teacher
        reason = f"{type(error).__name__}: {error}"
        raise _unknown_architecture(
            spec, f"name an architecture that this teacher has not ({reason})"
        ) from error
    return found


def _unknown_architecture(spec: Spec, problem: str) -> KDError:
    return KDError(
        "weights-architecture",
        f"the student's weights {problem}",
        where=str(spec.student.weights),
        fix="use a student.safetensors that kdcompile distill wrote for this teacher",
    )
