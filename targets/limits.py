"""Limits of a target for a network's operators: the DLA's table of operators, channel tiles."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kdcompile.targets.rules_file import tables
from kdcompile.targets.schema import version

if TYPE_CHECKING:
    from kdcompile.targets import Target

IMAGE_CHANNELS = 4


@dataclass(frozen=True)
class Operator:
    """One operator of a network, as far as a target's limits concern it.

    Attributes:
        name: of its ONNX node.
        type: ONNX operator type.
        shape: of its output, batch first.
        kernel: window, one entry for each image axis; empty where it has none. So are `stride`,
            `dilation` and `padding` (its largest at either side).
        groups: of a convolution.
        in_channels: of a matrix product its inner size.
        out_channels: of a matrix product its last size.
        macs: multiply-adds.
        factor: of a resize, for each image axis.
        weight: whether one side of a product is a constant.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    groups: int = 1
    in_channels: int = 0
    out_channels: int = 0
    macs: int = 0
    factor: tuple[float, ...] = ()
    weight: bool = True

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Operator":
        """What `dataclasses.asdict` and JSON made of one."""
        fields: dict[str, Any] = {k: tuple(v) if type(v) is list else v for k, v in row.items()}
        return cls(**fields)


def tile(target: "Target", precision: str) -> int:
    """The channels that are computed together: of a precision on a GPU, of a vector on a CPU."""
    channels: Mapping[str, int] = tables().tiles["channels"]
    if target.kind == "cpu" or precision not in channels:
        return target.channel_tile
    return min(channels[precision], target.channel_tile)


def padded_macs(operator: Operator, channels: int) -> int:
    """Multiply-adds with the channels of each group rounded up to whole tiles of `channels`.

    A side of so few channels that it is an image or a map stays as it is, as nobody chose it; so
    does a depthwise convolution, which no tensor core computes.
    """
    if not operator.macs or operator.groups == operator.in_channels > 1:
        return operator.macs
    sides = [n // operator.groups for n in (operator.in_channels, operator.out_channels)]
    whole = [-(-n // channels) * channels if n > IMAGE_CHANNELS else n for n in sides]
    return operator.macs * whole[0] * whole[1] // (sides[0] * sides[1])


def dla_refusals(operators: Sequence[Operator], target: "Target") -> dict[str, list[Operator]]:
    """Reason to the operators that stay on the GPU for it; each operator once."""
    found: dict[str, list[Operator]] = {}
    for operator in operators:
        reason = next(_reasons(operator, target.compute_capability or "0"), None)
        if reason is not None:
            found.setdefault(reason, []).append(operator)
    return found


@dataclass(frozen=True)
class DlaLayer:
    """Where an operator is expected to run: `reason` says why the GPU takes it, empty on a DLA."""

    name: str
    type: str
    reason: str


def dla_layers(
    operators: Sequence[Operator], target: "Target", whole: str = ""
) -> tuple[DlaLayer, ...]:
    """Each operator of a network with its side of a DLA, in the network's order.

    Args:
        operators: of the network.
        target: with a DLA.
        whole: why the whole network stays on the GPU; empty where only single operators may.
    """
    reasons = {
        operator.name: reason
        for reason, found in dla_refusals(operators, target).items()
        for operator in found
    }
    return tuple(
        DlaLayer(operator.name, operator.type, whole or reasons.get(operator.name, ""))
        for operator in operators
    )


def _reasons(operator: Operator, capability: str) -> Iterator[str]:
    """Why a DLA does not take an operator."""
    dla = tables().dla
    limits: Mapping[str, Any] | None = dla["operators"].get(operator.type)
    if limits is None:
        yield f"a DLA has no {operator.type}"
        return
    first = limits.get("capability")
    if first and version(capability) < version(first):
        yield f"{operator.type}: only a DLA with a GPU of compute capability {first} has it"
    if limits.get("constant") and not operator.weight:
        yield f"{operator.type}: one side must be a constant"
    axes = limits.get("axes")
    if axes and len(operator.kernel or operator.factor) not in (0, axes):
        yield f"{operator.type}: {axes} image axes"
    values: dict[str, Sequence[float]] = {
        "kernel": operator.kernel, "stride": operator.stride, "padding": operator.padding,
        "dilation": operator.dilation, "groups": [operator.groups], "factor": operator.factor,
        "channels": [n for n in (operator.in_channels, operator.out_channels) if n],
    }  # fmt: skip
    for key, sizes in values.items():
        if key in limits:
            yield from _outside(f"{operator.type} {key}", sizes, limits[key])
    if any(factor != int(factor) for factor in operator.factor):
        yield f"{operator.type} factor: whole numbers"
    yield from _outside("batch", operator.shape[:1], dla["batch"])
    yield from _outside("size", operator.shape[1:], dla["size"])


def _outside(what: str, sizes: Sequence[float], allowed: Sequence[int]) -> Iterator[str]:
    low, high = allowed
    if any(not low <= size <= high for size in sizes):
        span = f"{low} to {high}" if high > low else f"{low}"
        yield f"{what}: {span}"
