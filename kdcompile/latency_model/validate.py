"""Validate the latency model on every fixture, each predicted without its own network.

Leave one *network* out: the efficiencies that predict a fixture are fitted, from the priors, on the
fixtures of all other networks. The CPU's fixtures are not held against it: its peak was taken from
the same two latencies. A fixture is predicted as it was measured: with a CUDA graph or without.
Fixtures that are held out are predicted by the shipped efficiencies, which never saw them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Literal

from pydantic import Field, computed_field

from kdcompile.latency_model.parameters import (
    Efficiencies,
    Observation,
    efficiencies_of,
    fit,
    group_of,
    log_deviation,
    priors,
)
from kdcompile.latency_model.predict import NINETY
from kdcompile.latency_model.reference_kernels import reference_kernels
from kdcompile.latency_model.roofline import lay_out, times
from kdcompile.latency_model.workload import Kernel
from kdcompile.targets import load
from kdcompile.targets.fixtures import describe_gaps, describe_structures, load_fixtures

LEFT_OUT: dict[str, Callable[[Observation], str]] = {
    "network": lambda observation: observation.network,
    "module": lambda observation: observation.target.name,
}
MEDIAN_GOAL, WORST_GOAL, COVERAGE_GOAL = 0.12, 0.30, 0.85


@dataclass(frozen=True)
class Row:
    """One fixture. `error` is predicted over measured, less one; `inside`: in the 90 % interval."""

    name: str
    network: str
    target: str
    precision: str
    predicted_ms: float
    low_ms: float
    high_ms: float
    measured_ms: float
    error: float
    inside: bool


@dataclass(frozen=True)
class Validation:
    """The fixtures, each predicted without its network, and what predictions rest on nothing.

    `held`: those that nothing was fitted on, predicted as a user's network is; `apart`: the same
    predicted without their networks too, as `rows` are. Summary and goals are of `rows` alone.
    `inexact`: the networks that could not be rebuilt as they were measured.
    """

    rows: Annotated[tuple[Row, ...], Field(serialization_alias="fixtures")]
    gaps: Annotated[tuple[str, ...], Field(serialization_alias="unvalidated")]
    held: Annotated[tuple[Row, ...], Field(serialization_alias="held_out")] = ()
    apart: Annotated[tuple[Row, ...], Field(serialization_alias="held_out_apart")] = ()
    inexact: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_error(self) -> float:
        """Of the absolute errors."""
        return median(abs(row.error) for row in self.rows)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worst_error(self) -> float:
        """The largest absolute error."""
        return max(abs(row.error) for row in self.rows)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def coverage(self) -> float:
        """Share of the fixtures inside their interval."""
        return sum(row.inside for row in self.rows) / len(self.rows)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def goals(self) -> dict[str, bool]:
        """Which of the goals are met."""
        return {
            "median": self.median_error <= MEDIAN_GOAL,
            "worst": self.worst_error <= WORST_GOAL,
            "coverage": self.coverage >= COVERAGE_GOAL,
        }

    def text(self) -> str:
        """A table, the summary and the gaps."""
        head = f"{'predicted':>9} {'90 % interval':>17} {'measured':>9} {'error':>7}"
        lines = [f"{'fixture':<38} {head}", *map(_line, self.rows)]
        lines += [
            "",
            "milliseconds; each predicted from the fixtures of all other networks",
            self._summary("median", "median absolute error", self.median_error, MEDIAN_GOAL),
            self._summary("worst", "worst", self.worst_error, WORST_GOAL),
            self._summary("coverage", "inside the interval", self.coverage, COVERAGE_GOAL),
            "",
            f"{'held out, predicted as shipped':<38} {head}",
            *map(_line, self.held),
            "",
            *self.inexact,
            "",
            *self.gaps,
        ]
        return "\n".join(lines)

    def _summary(self, goal: str, what: str, value: float, wanted: float) -> str:
        sign = "at least" if goal == "coverage" else "at most"
        verdict = "met" if self.goals[goal] else "missed"
        return f"{what}: {value:.1%} (goal {sign} {wanted:.0%}: {verdict})"


def _line(row: Row) -> str:
    interval = f"{row.low_ms:.3g} .. {row.high_ms:.3g}"
    return (
        f"{row.name:<38} {row.predicted_ms:>9.4g} {interval:>17} {row.measured_ms:>9.4g} "
        f"{row.error:>+7.1%}{'' if row.inside else '  outside'}"
    )


def validate(without: Literal["network", "module"] = "network") -> Validation:
    """Predict every usable fixture of a GPU without those of its network, or of its module.

    Raises:
        KDError: a fixture, a target or the reference kernels cannot be read.
    """
    known, held, key = observations("gpu"), observations("gpu", held_out=True), LEFT_OUT[without]
    rows: list[Row] = []
    apart: list[Row] = []
    for left in dict.fromkeys(map(key, known)):
        fitted = fit([o for o in known if key(o) != left], priors("gpu"))
        rows += [_row(o, fitted) for o in known if key(o) == left]
        apart += [_row(o, fitted) for o in held if key(o) == left]
    shipped = tuple(_row(o, efficiencies_of(o.target)) for o in held)
    return Validation(tuple(rows), describe_gaps(), shipped, tuple(apart), describe_structures())


def observations(group: str, held_out: bool = False) -> list[Observation]:
    """The usable fixtures of `gpu` or `cpu`, with the kernels of their networks.

    Args:
        group: of targets.
        held_out: those that nothing may be fitted on; else all others.
    """
    found = []
    for fixture in load_fixtures():
        if not fixture.usable or fixture.held_out != held_out:
            continue
        target = load(f"{fixture.target}@{fixture.mode}", calibrated=False)
        if group_of(target) != group:
            continue
        kernels = reference_kernels(fixture.network, fixture.shape, fixture.precision)
        if fixture.kind == "published":  # MLPerf hands the image over in the engine's type
            kernels = _without_conversion(kernels)
        found.append(
            Observation(
                fixture.name, fixture.network, kernels, target, fixture.precision,
                fixture.measured_ms, fixture.graph,
            )
        )  # fmt: skip
    return found


def _without_conversion(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels less a reformat of the network's input."""
    written = {tensor for kernel in kernels for tensor in kernel.writes}
    return [k for k in kernels if k.kind != "reformat" or set(k.reads) & written]


def _row(observation: Observation, fitted: Efficiencies) -> Row:
    layout = lay_out(observation.kernels, observation.target, observation.graph)
    predicted = 1e3 * times(layout, fitted.values).total
    factor = math.exp(NINETY * log_deviation(layout, fitted))
    low, high = predicted / factor, predicted * factor
    return Row(
        name=observation.name,
        network=observation.network,
        target=observation.target.full_name,
        precision=observation.precision,
        predicted_ms=predicted,
        low_ms=low,
        high_ms=high,
        measured_ms=observation.ms,
        error=predicted / observation.ms - 1,
        inside=low <= observation.ms <= high,
    )
