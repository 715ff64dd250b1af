"""Uniform search (`shrink`): the widest student within the budget, or the one that is given."""

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
from kdcompile.search.depth import evenly_chosen, residual_blocks, without
from kdcompile.search.frozen import frozen, sentences
from kdcompile.search.given_student import given_architecture, refuse_larger
from kdcompile.search.pareto import Point, impossible, keeps
from kdcompile.search.recorded import Narrowed
from kdcompile.search.spaces.pruned import GRID, students
from kdcompile.search.spaces.pruned_kernels import Template
from kdcompile.search.unshrunk import refuse_unshrunk
from kdcompile.targets import Target


def choose_width(
    spec: Spec, students_of: Narrowed, target: Target
) -> tuple[dict[str, Any], list[str]]:
    """The architecture that the spec fixes, checked against the budget, or the widest that fits.

    Where not even the narrowest fits, residual blocks are left out too.

    A student is priced at the precision that is expected to ship (`precision`), the teacher at
    that which it is compared at. With it come sentences on what keeps the teacher's width.

    Raises:
        KDError: `student-not-smaller`, `budget-impossible`; those of a given student's file.
    """
    budget, student, teacher = spec.student.budget, spec.student, students_of.teacher
    price = _Price(spec, students_of, target)
    teachers = {
        precision: price.network(
            teacher, {"width": 1.0}, [paired_precision(precision, target.precisions)]
        )
        for precision in price.precisions
    }
    if student.init == "file" or student.family != "shrink":
        given = price(given_architecture(spec, teacher))
        refuse_larger(spec, given, teachers[given.latency.precision])
        return dict(given.architecture), []
    channels, tile = trace(teacher.module, teacher.shape), target.channel_tile
    if budget.width is not None:
        teacher.fastest(target, price.precisions)  # refused where the target lacks a precision
        (chosen,) = students(channels, tile, spec.seed, [budget.width])
        held = refuse_unshrunk(teacher.module, channels, chosen, budget.width, tile, budget)
        return chosen, [*held, *sentences(frozen(teacher.module, channels))]
    options = students(channels, tile, spec.seed)
    price.channels = channels
    try:
        return dict(widest(options, price, budget, teachers).architecture), sentences(
            frozen(teacher.module, channels)
        )
    except KDError as error:
        if error.code != "budget-impossible":
            raise
        try:
            blocks = price.blocks()
            if not blocks:
                raise
            found = shallower(options, blocks, price, budget, teachers)
        except KDError:  # better why, where the network gets no smaller
            refuse_unshrunk(teacher.module, channels, options[-1], 1 / GRID, tile, budget)
            raise
        gone = found.architecture["dropped"]
        text = f"no width alone reaches the budget, so {len(gone)} residual blocks are left out: "
        held = sentences(frozen(teacher.module, channels))
        return dict(found.architecture), [text + ", ".join(gone), *held]


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


def shallower(
    architectures: Sequence[dict[str, Any]],
    blocks: Sequence[str],
    price: Callable[[dict[str, Any]], Point],
    budget: Budget,
    teachers: Mapping[str, Point],
) -> Point:
    """The widest student with so few blocks that one of half the width keeps the budget, or none.

    Args:
        architectures: in falling width.
        blocks: that can be left out.
        price: of an architecture.
        budget: what is to be kept.
        teachers: as in `widest`.

    Raises:
        KDError: `budget-impossible`.
    """
    for dropped in evenly_chosen(blocks):
        fewer = [without(one, dropped) for one in architectures]
        half = price(min(fewer, key=lambda one: abs(one["width"] - 0.5)))
        if keeps(budget, half, teachers[half.latency.precision]):
            break
    return widest(fewer, price, budget, teachers)


class _Price:
    """What a student costs: from the teacher's file at its widths, or from its own."""

    def __init__(self, spec: Spec, narrowed: Narrowed, target: Target) -> None:
        self._spec, self._narrowed, self._target = spec, narrowed, target
        self._teacher = narrowed.teacher
        self.precisions = candidate_precisions(spec, target)
        self.channels: Channels | None = None  # of the teacher, where it was traced already

    def __call__(self, architecture: dict[str, Any]) -> Point:
        student = student_from_architecture(
            self._teacher.module, architecture, self._spec.folder
        ).eval()
        template = self._template if architecture["family"] == "shrink" else None
        if template is None:
            own = self._narrowed.network(student, architecture)
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

    def blocks(self) -> list[str]:
        """The teacher's residual blocks that can be left out, and priced so."""
        found = residual_blocks(self._teacher.module, self._teacher.shape)
        template = self._template
        return [n for n in found if template is None or template.can_drop(n)]

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
