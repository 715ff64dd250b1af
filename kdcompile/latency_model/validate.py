"""Validate the latency model on every fixture, each predicted without its own network.

Ratios too, of two networks on one device: a speed-up is one. Each without both of its networks.

Leave one *network* out: the efficiencies that predict a fixture are fitted, from the priors, on the
fixtures of all other networks. The CPU's fixtures are not held against it: its peak was taken from
the same two latencies. A fixture is predicted as it was measured: with a CUDA graph or without.
Fixtures that are held out are predicted by the shipped efficiencies, which never saw them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Annotated, Literal

from pydantic import Field, computed_field

from kdcompile.latency_model.observations import observations
from kdcompile.latency_model.parameters import (
    Efficiencies,
    Observation,
    efficiencies_of,
    fit,
    log_deviation,
    priors,
    ratio_deviation,
)
from kdcompile.latency_model.predict import NINETY
from kdcompile.latency_model.roofline import lay_out, times
from kdcompile.targets.fixtures import describe_gaps, describe_structures

LEFT_OUT: dict[str, Callable[[Observation], str]] = {
    "network": lambda observation: observation.network.split(" v")[0],  # v1 goes with v1.5
    "module": lambda observation: observation.target.name,
}
GOALS = {
    "median": (0.0, 0.10), "worst": (0.0, 0.25), "coverage": (0.85, 0.97),
    "ratio_median": (0.0, 0.06), "ratio_worst": (0.0, 0.15), "ratio_coverage": (0.85, 0.97),
}  # fmt: skip
"""Least and most of each figure: too wide an interval is a fault too."""
NAMES = {
    "median": "median absolute error", "worst": "worst", "coverage": "inside the interval",
}  # fmt: skip


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
class Ratio:
    """The slower of two networks over the faster, measured on one device in one precision.

    `error` is predicted over measured, less one; `inside`: in the 90 % interval of the ratio.
    """

    slower: str
    faster: str
    predicted: float
    low: float
    high: float
    measured: float
    error: float
    inside: bool


@dataclass(frozen=True)
class Validation:
    """The fixtures, each predicted without its network, and what predictions rest on nothing.

    `held`: those that nothing was fitted on, predicted as a user's network is; `apart`: the same
    predicted without their networks too, as `rows` are. `secondary`: somebody's reports, as `held`.
    Summary and goals are of `rows` alone.
    `inexact`: the networks that could not be rebuilt as they were measured.
    """

    rows: Annotated[tuple[Row, ...], Field(serialization_alias="fixtures")]
    gaps: Annotated[tuple[str, ...], Field(serialization_alias="unvalidated")]
    held: Annotated[tuple[Row, ...], Field(serialization_alias="held_out")] = ()
    apart: Annotated[tuple[Row, ...], Field(serialization_alias="held_out_apart")] = ()
    secondary: tuple[Row, ...] = ()
    inexact: tuple[str, ...] = ()
    ratios: tuple[Ratio, ...] = ()

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_error(self) -> float:
        """Of the absolute errors."""
        return _agreement(self.rows)["median"]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def worst_error(self) -> float:
        """The largest absolute error."""
        return _agreement(self.rows)["worst"]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def coverage(self) -> float:
        """Share of the fixtures inside their interval."""
        return _agreement(self.rows)["coverage"]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def goals(self) -> dict[str, bool]:
        """Which of the goals are met."""
        found = _agreement(self.rows) | _agreement(self.ratios, "ratio_")
        return {name: _meets(name, value) for name, value in found.items()}

    def verdict(self) -> list[str]:
        """How good the latencies are, each figure with its goal."""
        return list(map(_said, _agreement(self.rows).items()))

    def ratio_verdict(self) -> list[str]:
        """The same of the ratios."""
        return list(map(_said, _agreement(self.ratios, "ratio_").items()))

    def text(self) -> str:
        """A table, the summary and the gaps."""
        head = f"{'predicted':>9} {'90 % interval':>17} {'measured':>9} {'error':>7}"
        lines = [f"{'fixture':<38} {head}", *map(_line, self.rows)]
        lines += [
            "",
            "milliseconds; each predicted from the fixtures of all other networks",
            *self.verdict(),
            "",
            f"{len(self.ratios)} ratios of two networks' latencies on one device, each predicted "
            "without both",
            *self.ratio_verdict(),
            "",
            f"{'held out, predicted as shipped':<38} {head}",
            *map(_line, self.held),
            "",
            f"{'secondary, predicted as shipped':<38} {head}",
            *map(_line, self.secondary),
            "",
            *self.inexact,
            "",
            *self.gaps,
        ]
        return "\n".join(lines)


def _agreement(rows: Sequence[Row | Ratio], prefix: str = "") -> dict[str, float]:
    """Median and worst absolute error, and the share inside the interval; nothing of no rows."""
    if not rows:
        return {}
    errors = [abs(row.error) for row in rows]
    inside = sum(row.inside for row in rows) / len(rows)
    found = {"median": median(errors), "worst": max(errors), "coverage": inside}
    return {prefix + name: value for name, value in found.items()}


def _meets(name: str, value: float) -> bool:
    low, high = GOALS[name]
    return low <= value <= high


def _said(found: tuple[str, float]) -> str:
    """A figure by its name, with its goal and whether that is met."""
    name, value = found
    low, high = GOALS[name]
    wanted = f"{low:.0%} to {high:.0%}" if low else f"at most {high:.0%}"
    verdict = "met" if _meets(name, value) else "missed"
    return f"{NAMES[name.removeprefix('ratio_')]}: {value:.1%} (goal {wanted}: {verdict})"


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
    known, held, key = observations("gpu"), observations("gpu", "held out"), LEFT_OUT[without]
    rows: list[Row] = []
    apart: list[Row] = []
    for left in dict.fromkeys(map(key, known)):
        fitted = fit([o for o in known if key(o) != left], priors("gpu"))
        rows += [_row(o, fitted) for o in known if key(o) == left]
        apart += [_row(o, fitted) for o in held if key(o) == left]
    shipped, reports = (
        tuple(_row(o, efficiencies_of(o.target)) for o in each)
        for each in (held, observations("gpu", "secondary"))
    )
    pairs = ratios(known) if without == "network" else ()  # always without both networks
    return Validation(
        tuple(rows), describe_gaps(), shipped, tuple(apart), reports, describe_structures(), pairs
    )


def ratios(known: Sequence[Observation]) -> tuple[Ratio, ...]:
    """Of each pair of networks on one device, precision and batch: fitted without either."""
    family = LEFT_OUT["network"]
    fitted: dict[frozenset[str], Efficiencies] = {}
    found = []
    for slower, faster in _pairs(known):
        left = frozenset((family(slower), family(faster)))
        if left not in fitted:
            fitted[left] = fit([o for o in known if family(o) not in left], priors("gpu"))
        found.append(_ratio(slower, faster, fitted[left]))
    return tuple(found)


def _pairs(known: Sequence[Observation]) -> Iterator[tuple[Observation, Observation]]:
    for one, other in combinations(known, 2):
        if _conditions(one) == _conditions(other) and LEFT_OUT["network"](one) != LEFT_OUT[
            "network"
        ](other):
            yield (one, other) if one.ms >= other.ms else (other, one)


def _conditions(observation: Observation) -> tuple[str, str, int]:
    return observation.target.full_name, observation.precision, observation.batch


def _ratio(slower: Observation, faster: Observation, fitted: Efficiencies) -> Ratio:
    one, other = (lay_out(o.kernels, o.target, o.graph) for o in (slower, faster))
    predicted = times(one, fitted.values).total / times(other, fitted.values).total
    measured = slower.ms / faster.ms
    factor = math.exp(NINETY * ratio_deviation(one, other, fitted))
    low, high = predicted / factor, predicted * factor
    error = predicted / measured - 1
    inside = low <= measured <= high
    return Ratio(slower.name, faster.name, predicted, low, high, measured, error, inside)


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
