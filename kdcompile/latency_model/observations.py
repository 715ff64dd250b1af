"""The fixtures with their networks' kernels: what is fitted on, and what is only predicted."""

from collections.abc import Sequence
from typing import Literal

from kdcompile.latency_model.parameters import Observation, group_of
from kdcompile.latency_model.reference_kernels import reference_kernels
from kdcompile.latency_model.workload import Kernel
from kdcompile.targets import load
from kdcompile.targets.fixtures import Fixture, load_fixtures

Use = Literal["fitted", "held out", "secondary"]


def observations(group: str, use: Use = "fitted") -> list[Observation]:
    """The usable fixtures of `gpu` or `cpu`, with the kernels of their networks.

    Args:
        group: of targets.
        use: `fitted` on, or those that nothing may be fitted on: `held out`, and `secondary`.
    """
    found = []
    for fixture in load_fixtures():
        if not fixture.usable or _use(fixture) != use:
            continue
        target = load(f"{fixture.target}@{fixture.mode}", calibrated=False)
        if group_of(target) != group:
            continue
        kernels = reference_kernels(fixture.network, fixture.shape, fixture.precision)
        if fixture.source.startswith("MLPerf"):  # which hands the image over in the engine's type
            kernels = _without_conversion(kernels)
        found.append(
            Observation(
                fixture.name, fixture.network, kernels, target, fixture.precision,
                fixture.measured_ms, fixture.graph, fixture.batch,
            )
        )  # fmt: skip
    return found


def _use(fixture: Fixture) -> Use:
    if not fixture.held_out:
        return "fitted"
    return "secondary" if fixture.secondary else "held out"


def _without_conversion(kernels: Sequence[Kernel]) -> list[Kernel]:
    """The kernels less a reformat of the network's input."""
    written = {tensor for kernel in kernels for tensor in kernel.writes}
    return [k for k in kernels if k.kind != "reformat" or set(k.reads) & written]
