"""What the engine benchmark measures of one engine, and of all of them in turns."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from kdcompile.backends.engine import EngineRunner
from kdcompile.core.files import file_sha256
from kdcompile.core.store import Store, digest
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.onnx_graph.layers import layer_macs, weighted_layers
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.remote.open import Place
from kdcompile.stats.latency_interval import PairedTimes, ratio_interval
from kdcompile.tasks.agreement import pooled_sqnr, relative_error
from kdcompile.tasks.task import Task

Floats = NDArray[np.float32]
# the order of a turn: what is compared follows one another
KINDS = ("graph", "enqueue", "device", "enqueue_graph", "end_to_end")
RATIOS = (("graph", "enqueue"), ("graph", "enqueue_graph"), ("device", "enqueue"))
REPLAYED = "@graph"  # a second context of an engine, in which every mode replays a CUDA graph


def int8_share(
    fp32: Path, used: Path, shape: Sequence[int], layers: Sequence[Mapping[str, Any]] | None
) -> tuple[float, str]:
    """The share of a network's multiply-accumulates that an engine computes in int8.

    Args:
        fp32: the network.
        used: the ONNX file that the engine is built from.
        shape: of the input, [1, C, H, W].
        layers: of the engine, with `precision` and `onnx`, the names of the nodes in each.

    Returns:
        The share, and its basis: `engine` where its inspector tells precisions, else `network`,
        the layers whose data is dequantised in the file.
    """
    model = onnx.load(fp32)
    macs = layer_macs(model, shape)
    named = {
        layer.node.name or f"node_of_{layer.node.output[0]}": macs[layer.name]
        for layer in weighted_layers(model)
    }
    if layers and any(layer["precision"] for layer in layers):
        inside = {n for one in layers if one["precision"] == "int8" for n in one["onnx"] or ()}
        basis = "engine"
    else:
        graph = onnx.load(used).graph
        made = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear"}
        inside, basis = {n.name for n in graph.node if n.input and n.input[0] in made}, "network"
    share = sum(count for name, count in named.items() if name in inside) / sum(named.values())
    return share, basis


@dataclass(frozen=True)
class References:
    """Outputs by ONNX Runtime on this machine's CPU, kept by what they depend on.

    Args:
        store: where.
        photos: that are compared, spread over the test split.
        prepare: from pixels to the input.
    """

    store: Store
    photos: Sequence[Photo]
    prepare: Preprocess

    def of(self, path: Path) -> list[Floats]:
        """The output [1, ...] of a network for each photo, Q/DQ pairs computed as written."""
        photos = [photo.sha256() for photo in self.photos]
        key = digest([file_sha256(path), photos, self.prepare.to_json()])

        def build(folder: Path) -> Mapping[str, Any]:
            model = onnx.load(path)
            session, feed = cpu_session(model, as_written=True), model.graph.input[0].name
            found = [session.run(None, {feed: image})[0] for image in self.inputs()]
            np.savez(folder / "outputs.npz", *found)
            return {"n": len(found)}

        with np.load(self.store.make("reference", key, build).file("outputs.npz")) as kept:
            return [kept[f"arr_{i}"] for i in range(len(photos))]

    def inputs(self) -> Iterator[Floats]:
        """float32 [1, C, H, W] of each photo."""
        return (self.prepare(photo.pixels(self.prepare.channels)) for photo in self.photos)


def judge(
    runner: EngineRunner, photos: Sequence[Photo], task: Task, prepare: Preprocess
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Run an engine over photos.

    Returns:
        Every metric of the task with the predictions, or how many outputs were not finite; and
        the output of each photo by its name.
    """
    outputs = {p.name: runner(prepare(p.pixels(prepare.channels))) for p in photos}
    bad = sum(not np.isfinite(output).all() for output in outputs.values())
    if bad:
        return {"n": len(photos), "nonfinite": bad}, outputs
    predicted = [float(task.predictions(output)[0]) for output in outputs.values()]
    true = [task.truth(photo) for photo in photos]
    errors = [round(float(error), 4) for error in task.errors(predicted, true)]
    return {"n": len(photos), **task.scores(predicted, true), "errors": errors}, outputs


def parity(references: Sequence[Floats], outputs: Sequence[Floats]) -> dict[str, Any]:
    """Pooled SQNR in dB and the largest relative error, as the gate has them."""
    if not all(np.isfinite(output).all() for output in outputs):
        return {"n": len(outputs), "finite": False}
    worst = max(relative_error(a, b) for a, b in zip(references, outputs, strict=True))
    return {"n": len(outputs), "sqnr_db": pooled_sqnr(references, outputs), "max_rel_error": worst}


def kinds_of(modes: Sequence[str]) -> list[str]:
    """What can be timed with the modes of a worker."""
    replays = {"graph", "enqueue"} <= set(modes)
    return [k for k in KINDS if k in modes or (k == "enqueue_graph" and replays)]


def time_all(
    place: Place,
    engines: Mapping[str, str],
    image: Floats,
    turns: int,
    iterations: int,
    warmup: int = 10,
) -> dict[str, dict[str, Any]]:
    """Load engines together and time every kind of each in turns, every other turn backwards.

    Args:
        place: where they are.
        engines: path there by name.
        image: float32 [1, C, H, W].
        turns: samples of each kind of each engine; one more goes before them and does not count.
        iterations: inferences of a sample, whose median it is.
        warmup: before them.

    Returns:
        By engine and kind the quantiles over all inferences in ms and the samples in `turns`;
        `ratios`, one kind's median over another's with a 95 % interval over the turns.
    """
    kinds = kinds_of(place.about["modes"])
    for name, path in engines.items():
        place.call("load", path=path, name=name)
        if "enqueue_graph" in kinds:
            place.call("load", path=path, name=name + REPLAYED, graph=True)
    series = [(name, kind) for name in engines for kind in kinds]
    seen: dict[tuple[str, str], list[NDArray[np.float64]]] = {one: [] for one in series}
    clocks: dict[str, str] = {}
    options = {"iterations": iterations, "warmup": warmup, "samples": True}
    for turn in range(turns + 1):
        for name, kind in series[:: 1 if turn % 2 else -1]:
            mode = kind.removesuffix("_graph")
            loaded = name if mode == kind else name + REPLAYED
            answer = place.time({"image": image}, name=loaded, mode=mode, **options)
            clocks[kind], samples = _samples(answer)
            if turn:
                seen[name, kind].append(samples)
    return {
        name: {kind: {"clock": clocks[kind], **_summary(seen[name, kind])} for kind in kinds}
        | {"ratios": _ratios({kind: seen[name, kind] for kind in kinds}, iterations)}
        for name in engines
    }


def _samples(answer: Mapping[str, Any]) -> tuple[str, NDArray[np.float64]]:
    """The clock and milliseconds of an answer: the device's clock where there is one."""
    clock = next(c for c in ("end_to_end", "device", "wall") if answer["samples"].get(c))
    return clock, np.array(answer["samples"][clock], np.float64)


def _summary(turns: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    every = np.concatenate(turns)
    p50, p90, p99 = (round(float(x), 5) for x in np.percentile(every, [50, 90, 99]))
    medians = [round(float(np.median(turn)), 5) for turn in turns]
    return {"p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "min_ms": round(float(every.min()), 5),
            "n": len(every), "turns": medians}  # fmt: skip


def _ratios(
    turns: Mapping[str, Sequence[NDArray[np.float64]]], iterations: int
) -> dict[str, list[float]]:
    found = {}
    for over, under in RATIOS:
        if over in turns and under in turns:
            a, b = (np.array([np.median(turn) for turn in turns[k]]) for k in (over, under))
            ratio = ratio_interval(PairedTimes(a, b, iterations), seed=0)
            found[f"{over}/{under}"] = [round(value, 4) for value in ratio]
    return found
