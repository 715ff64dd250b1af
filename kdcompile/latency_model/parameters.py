"""Parameters of the latency model (efficiencies): their priors, their fit, and their files.

A fit is a maximum a posteriori in the logarithms: each efficiency has a log-normal prior, each
measured latency a log-normal error of the model's own. Laplace's approximation around it gives the
covariance. An efficiency that no measurement touches keeps its prior and its whole uncertainty.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kdcompile import targets
from kdcompile.latency_model.prior_values import PRIORS
from kdcompile.latency_model.roofline import Layout, lay_out, times
from kdcompile.latency_model.workload import Array, Kernel
from kdcompile.targets import Target, user

FITTED = Path(targets.__file__).with_name("latency.toml")

RESIDUAL = 0.15
RESIDUAL_WEIGHT = 10
"""The model's own error, as a log standard deviation, and how many measurements that belief weighs:
an inverse gamma prior on its square."""
SHARED = 0.5  # of the residual's variance, by the latencies of one network
ROUNDS = 4  # of fit and residual in turn
OUTLIER = 2.5  # standard deviations from which an error counts by its size, not its square
MOST_CALLS, TOLERANCE = 100, 1e-5
STEP = 1e-3  # of a logarithm, for a slope
ELSEWHERE = math.log(2) / 1.645  # half to twice as fast, at 90 %


@dataclass(frozen=True)
class Efficiencies:
    """Parameters of the equations, all positive, with their uncertainty.

    `covariance` is that of the logarithms, in the order of `sorted(values)`; `residual` the log
    standard deviation of what the equations cannot say; `source` where the values are from.
    """

    values: Mapping[str, float]
    covariance: tuple[tuple[float, ...], ...]
    residual: float
    source: str

    @property
    def names(self) -> list[str]:
        """In the order of the covariance."""
        return sorted(self.values)

    @property
    def logs(self) -> Array:
        """Logarithms of the values, in the order of the covariance."""
        return np.log([self.values[name] for name in self.names])


@dataclass(frozen=True)
class Observation:
    """A measured latency: `kernels` of one inference took `ms`.

    `graph`: as a CUDA graph; else enqueued one by one, inferences back to back. A CPU has none.
    """

    name: str
    network: str
    kernels: Sequence[Kernel]
    target: Target
    precision: str
    ms: float
    graph: bool = True
    batch: int = 1


def group_of(target: Target) -> str:
    """Which set of efficiencies a target has: `gpu` or `cpu`."""
    return "cpu" if target.kind == "cpu" else "gpu"


def priors(group: str) -> Efficiencies:
    """What is believed before any measurement."""
    table = PRIORS[group]
    names = sorted(table)
    covariance = np.diag([table[name][1] ** 2 for name in names])
    values = {name: table[name][0] for name in names}
    return Efficiencies(values, _rows(covariance), RESIDUAL, "priors")


def efficiencies_of(target: Target) -> Efficiencies:
    """The user's calibration of the target, or the package's fit.

    Raises:
        KDError: `calibration-invalid`, it is of other equations.
    """
    if target.calibration is not None:
        if set(target.calibration["values"]) != set(PRIORS[group_of(target)]):
            raise user.invalid(target.name, "its efficiencies are those of another kdcompile")
        return _from_table(target.calibration, f"calibration of {target.name}")
    return _fitted()[group_of(target)]


@cache
def _fitted() -> dict[str, Efficiencies]:
    table = tomllib.loads(FITTED.read_text(encoding="utf-8"))
    return {group: _from_table(entry, FITTED.name) for group, entry in table.items()}


def _from_table(table: Mapping[str, Any], source: str) -> Efficiencies:
    covariance = tuple(tuple(map(float, row)) for row in table["covariance"])
    values = {name: float(value) for name, value in table["values"].items()}
    return Efficiencies(values, covariance, float(table["residual"]), source)


def fit(observations: Sequence[Observation], prior: Efficiencies) -> Efficiencies:
    """The posterior of a prior and of measured latencies, all of one group's targets.

    Half of the residual's variance is shared by the latencies of one network: they are wrong
    together. It is estimated in turn with the values, as the mode of its own posterior.
    """
    problem = _Problem(observations, prior)
    logs, residual = prior.logs, prior.residual
    for _ in range(ROUNDS):
        logs, slope = problem.solve(residual, logs)
        errors = problem.scatter @ problem.errors(logs)
        errors = np.clip(errors, -OUTLIER * residual, OUTLIER * residual)
        hat = slope[: len(errors)] @ np.linalg.inv(slope.T @ slope) @ slope[: len(errors)].T
        squares = RESIDUAL_WEIGHT * RESIDUAL**2 + float(errors @ errors)
        residual = math.sqrt(squares / (RESIDUAL_WEIGHT + len(errors) - float(np.trace(hat))))
    covariance = np.linalg.inv(slope.T @ slope).astype(np.float64)
    values = dict(zip(prior.names, map(float, np.exp(logs)), strict=True))
    return replace(
        prior, values=values, covariance=_rows(covariance), residual=residual,
        source=f"fit of {len(observations)} latencies over {prior.source}",
    )  # fmt: skip


def elsewhere(fitted: Efficiencies) -> Efficiencies:
    """A CPU's fit for machines that were not measured, which may be half or twice as fast.

    Arithmetic, memory and launches are so together, hence every latency.
    """
    faster = {"arithmetic": 1.0, "dram": 1.0, "launch": -1.0}  # `l2` is a multiple of `dram`
    way = np.array([faster.get(name, 0.0) for name in fitted.names])
    covariance = np.array(fitted.covariance) + ELSEWHERE**2 * np.outer(way, way)
    source = f"{fitted.source}, for any machine"
    return replace(fitted, covariance=_rows(covariance), source=source)


class _Problem:
    """The least squares of a fit: `scatter` and `whiten` make errors and prior independent."""

    def __init__(self, observations: Sequence[Observation], prior: Efficiencies) -> None:
        self.layouts = [lay_out(o.kernels, o.target, o.graph) for o in observations]
        self.measured = np.log([1e-3 * o.ms for o in observations])
        self.prior = prior
        networks = np.array([o.network for o in observations])
        same = (networks[:, None] == networks[None, :]).astype(float)
        self.scatter = _root(SHARED * same + (1 - SHARED) * np.eye(len(same)))
        self.whiten = _root(np.array(prior.covariance))
        used = [_efficiencies_of(layout) for layout in self.layouts]
        self.users = {
            index: [place for place, names in enumerate(used) if name in names]
            for index, name in enumerate(prior.names)
        }

    def errors(self, logs: Array) -> Array:
        """Logarithms of predicted over measured."""
        return _predicted(self.layouts, self.prior.names, logs) - self.measured

    def solve(self, residual: float, guess: Array) -> tuple[Array, Array]:
        """Logarithms that maximise the posterior, and the slope of all residuals there."""
        from scipy.optimize import least_squares

        weight = self.scatter / residual

        def residuals(logs: Array) -> Array:
            whole = [weight @ self.errors(logs), self.whiten @ (logs - self.prior.logs)]
            return np.concatenate(whole)

        def slope(logs: Array) -> Array:
            columns = np.zeros((len(self.measured), len(logs)))
            centre = self.errors(logs)
            for index, places in self.users.items():
                moved = logs.copy()
                moved[index] += STEP
                layouts = [self.layouts[place] for place in places]
                found = _predicted(layouts, self.prior.names, moved) - self.measured[places]
                columns[places, index] = (found - centre[places]) / STEP
            return np.concatenate([weight @ columns, self.whiten])

        found = least_squares(
            residuals, guess, jac=slope, loss="huber", f_scale=OUTLIER,
            ftol=TOLERANCE, xtol=TOLERANCE, max_nfev=MOST_CALLS,
        )  # fmt: skip
        return found.x, found.jac


def _efficiencies_of(layout: Layout) -> set[str]:
    """The names of all that the time of a layout may depend on."""
    used = {"exposed", "fill", "dram", "l2", "operands", layout.launch}
    used |= {name for names in layout.arithmetic for name in names} | set(layout.memory)
    used |= {"int8.windows"} if layout.windows.any() else set()
    used |= {f"step.{layout.generation}"} | (set() if layout.graph else {"stream", "host"})
    return used


def _root(covariance: Array) -> Array:
    """W with W^T W the inverse: W times what has this covariance is independent."""
    return np.linalg.cholesky(np.linalg.inv(covariance)).T


def _predicted(layouts: Sequence[Layout], names: Sequence[str], logs: Array) -> Array:
    """Logarithms of the predicted seconds."""
    values = dict(zip(names, map(float, np.exp(logs)), strict=True))
    return np.log([times(layout, values).total for layout in layouts])


def predicted_ms(observation: Observation, efficiencies: Efficiencies) -> float:
    """The predicted median of a measured latency, enqueued as that was."""
    layout = lay_out(observation.kernels, observation.target, observation.graph)
    return 1e3 * times(layout, efficiencies.values).total


def log_deviation(layout: Layout, efficiencies: Efficiencies) -> float:
    """Log standard deviation of a predicted latency: of the values (J C J^T) and the residual."""
    variance = _variance(_slope(layout, efficiencies), efficiencies)
    return math.sqrt(variance + efficiencies.residual**2)


def ratio_deviation(one: Layout, other: Layout, efficiencies: Efficiencies) -> float:
    """Log standard deviation of the ratio of two predicted latencies of one target.

    An efficiency that both lean on alike cancels. Of the residual's variance SHARED is taken to be
    common to both, as to the latencies of one network: `validate` counts how often that holds.
    """
    slope = _slope(one, efficiencies) - _slope(other, efficiencies)
    own = 2 * (1 - SHARED) * efficiencies.residual**2
    return math.sqrt(_variance(slope, efficiencies) + own)


def _slope(layout: Layout, efficiencies: Efficiencies) -> Array:
    """Of the logarithm of a latency, by those of the values."""
    logs, names = efficiencies.logs, efficiencies.names
    centre = _predicted([layout], names, logs)[0]
    moved = (_predicted([layout], names, logs + STEP * unit)[0] for unit in np.eye(len(logs)))
    return np.array([(each - centre) / STEP for each in moved])


def _variance(slope: Array, efficiencies: Efficiencies) -> float:
    return float(slope @ np.array(efficiencies.covariance) @ slope)


def _rows(matrix: Array) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in matrix)
