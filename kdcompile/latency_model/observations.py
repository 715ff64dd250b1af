"""The fixtures with their networks' kernels: what is fitted on, and what is only predicted."""

from collections.abc import Sequence
from dataclasses import replace
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
        if fixture.image != "float":
            kernels = _of_int8(kernels, fixture.image)
        if fixture.copied:
            kernels = [_copy(fixture.copied, kernels[0]), *kernels]
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


def _copy(size: int, first: Kernel) -> Kernel:
    """Of the image to where the first kernel reads it."""
    (image,) = first.reads
    return Kernel(
        name="copy of the image", kind="copy", input_precision="int8", weight_precision="",
        output_precision="int8", macs=0, reads={"host": size}, writes={image: size},
        weight_bytes=0, shape=(size,), in_channels=1, out_channels=1, kernel_size=(), stride=(),
        dilation=(), groups=1, nodes=(),
    )  # fmt: skip


def _of_int8(kernels: Sequence[Kernel], image: str) -> list[Kernel]:
    """The kernels where the image is int8: a reformat of it moves a quarter of the float's bytes.

    In fours of channels (chw4) the first convolution reads it as it is.
    """
    written = {tensor for kernel in kernels for tensor in kernel.writes}
    found = []
    for kernel in kernels:
        if kernel.kind == "reformat" and not set(kernel.reads) & written:
            if image == "chw4":
                continue
            quarter = {tensor: size // 4 for tensor, size in kernel.reads.items()}
            kernel = replace(kernel, input_precision="int8", reads=quarter)
        found.append(kernel)
    return found
