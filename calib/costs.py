"""Costs of precisions: the time int8 saves in each layer, and that of a change to fp16."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onnx import ModelProto

from kdcompile.calib.precision_regions import Junctions
from kdcompile.core.errors import KDError
from kdcompile.onnx_graph.layers import known_sizes, layer_macs, quantised_layers, weighted_layers

if TYPE_CHECKING:
    from kdcompile.targets import Target

# words in names of an engine's layers; "broadcast" is none
REFORMATS = re.compile(r"reformat|(?<![a-z])cast|quantizelinear|copynode")


@dataclass(frozen=True)
class Costs:
    """Milliseconds of each quantisable layer by name, in int8 and in fp16.

    `reformat_ms` gives the cost of all tensors that are recast for a set of quantised layers.
    """

    int8_ms: Mapping[str, float]
    fp16_ms: Mapping[str, float]
    reformat_ms: Callable[[frozenset[str]], float]
    basis: Literal["measured", "predicted"]

    def latency_ms(self, quantised: Collection[str]) -> float:
        """Of the quantisable layers and the recast tensors when these layers are quantised."""
        layers = (
            (self.int8_ms if name in quantised else self.fp16_ms)[name] for name in self.fp16_ms
        )
        return math.fsum((*layers, self.reformat_ms(frozenset(quantised))))


def predicted_costs(model: ModelProto, shape: Sequence[int], target: "Target") -> Costs:
    """Stand-ins until there is a measured profile: a roofline at the sheet's peaks.

    A layer takes the longer of its multiply-accumulates and its traffic. A tensor that enters int8
    is read and written by a kernel of its own; one that leaves it is cast by the layer that makes
    it, which then writes twice the bytes (so TensorRT-RTX 1.7 compiles both).

    Args:
        model: float32.
        shape: of the input, [1, C, H, W].
        target: its dense peaks, bandwidth and launch cost.

    Raises:
        KDError: `mixed-target`: the target lacks int8 or fp16.
    """
    peaks, bandwidth = target.peak_tflops, target.bandwidth_gbs * 1e6  # bytes/ms
    lacking = [p for p in ("int8", "fp16") if p not in target.precisions or p not in peaks]
    if lacking:
        raise KDError(
            "mixed-target",
            f"{target.name} has no {lacking[0]}, so int8 and fp16 cannot be mixed there",
            where="[quantize] precision",
            fix=f"--set quantize.precision=auto, or one of {', '.join(target.precisions)}",
        )
    sizes, macs = known_sizes(model, shape), layer_macs(model, shape)

    def milliseconds(precision: str, width: int) -> dict[str, float]:
        found = {}
        for layer in quantised_layers(model):
            tensors = (layer.data, layer.weight, layer.node.output[0])
            moved = width * sum(math.prod(sizes[name]) for name in tensors)
            arithmetic = 2 * macs[layer.name] / (peaks[precision] * 1e9)
            found[layer.name] = max(arithmetic, moved / bandwidth)
        return found

    def one(tensor: str, enters: bool) -> float:
        elements = math.prod(sizes[tensor])
        return (
            (3 * elements / bandwidth + 1e-3 * target.launch_us) if enters else elements / bandwidth
        )

    return Costs(
        milliseconds("int8", 1), milliseconds("fp16", 2), _reformats(model, one), "predicted"
    )


def measured_costs(
    model: ModelProto,
    int8_layers: Sequence[Mapping[str, Any]],
    fp16_layers: Sequence[Mapping[str, Any]],
    reformat_ms: float,
) -> Costs:
    """From the per-layer profiles of the int8 and the fp16 engine, the worker's `layers`.

    A kernel that holds several weighted layers is shared between them equally. Only layers with
    weights are distinguished: a pool that is faster in int8 counts for nothing.

    Args:
        model: the float32 network.
        int8_layers: each with `ms` and `onnx`, the names of the ONNX nodes in it.
        fp16_layers: the same of the fp16 engine.
        reformat_ms: of one recast tensor; `measured_reformat_ms` of a mixed or int8 engine's.

    Raises:
        KDError: `mixed-profile`: a quantisable layer is not found in a profile.
    """
    names = {layer.node.name: layer.name for layer in quantised_layers(model) if layer.node.name}
    int8_ms, fp16_ms = (_by_layer(profile, names) for profile in (int8_layers, fp16_layers))
    absent = [
        layer.name
        for layer in quantised_layers(model)
        if layer.name not in int8_ms or layer.name not in fp16_ms
    ]
    if absent:
        raise KDError(
            "mixed-profile",
            f"the engine's profile does not show layer {absent[0]} ({len(absent)} such)",
            where="profile",
            fix="build with detailed profiling, or plan with predicted costs",
        )
    return Costs(
        int8_ms, fp16_ms, _reformats(model, lambda _tensor, _enters: reformat_ms), "measured"
    )


def measured_reformat_ms(model: ModelProto, layers: Iterable[Mapping[str, Any]]) -> float | None:
    """The mean milliseconds of an engine's layers that only change a tensor's type or format.

    None where the profile shows no such layer: nothing was measured.
    """
    weighted = {layer.node.name for layer in weighted_layers(model)}
    times = [
        float(layer["ms"])
        for layer in layers
        if REFORMATS.search(layer["name"].lower()) and not weighted & set(layer["onnx"] or ())
    ]
    return math.fsum(times) / len(times) if times else None


def _by_layer(profile: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for kernel in profile:
        held = [names[node] for node in kernel["onnx"] or () if node in names]
        for name in held:
            found[name] = found.get(name, 0.0) + float(kernel["ms"]) / len(held)
    return found


def _reformats(
    model: ModelProto, one: Callable[[str, bool], float]
) -> Callable[[frozenset[str]], float]:
    junctions = Junctions(model)
    known: dict[frozenset[str], float] = {}

    def total(quantised: frozenset[str]) -> float:
        if quantised not in known:
            changes = junctions.recast(quantised).items()
            known[quantised] = math.fsum(one(name, enters) for name, enters in changes)
        return known[quantised]

    return total
