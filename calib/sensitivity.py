"""Cost of each layer's int8 for the output: alone, and left out of an otherwise int8 network."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from kdcompile.calib.qdq import choose_layers, insert_qdq
from kdcompile.calib.table import CalibrationTable
from kdcompile.core.errors import KDError
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.onnx_graph.layers import layer_macs
from kdcompile.onnx_graph.session import cpu_session, run_session
from kdcompile.tasks.agreement import pooled_sqnr
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.task import Task

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """The task's metric of a network, and the SQNR in dB of its outputs against fp32, pooled."""

    metric: float
    sqnr_db: float


Evaluate = Callable[[ModelProto], Outcome]


@dataclass(frozen=True)
class LayerSensitivity:
    """One quantisable layer.

    `alone` is of the network with only this layer in int8, `without` with all others in int8;
    `macs_share` of the whole network's multiply-accumulates.
    """

    layer: str
    op_type: str
    macs: int
    macs_share: float
    alone: Outcome
    without: Outcome


@dataclass(frozen=True)
class Sensitivity:
    """Every quantisable layer, the one whose int8 alone costs most SQNR first."""

    images: int
    fp32: Outcome
    int8: Outcome
    layers: tuple[LayerSensitivity, ...]

    def benefit(self, layer: LayerSensitivity) -> float:
        """The share of the int8 network's error power that goes where the layer is left out.

        Error powers of layers add up where their errors are independent, which decibels do not.
        """
        return 1.0 - 10 ** ((self.int8.sqnr_db - layer.without.sqnr_db) / 10)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Sensitivity":
        """What `to_json` gave."""
        layers = tuple(
            LayerSensitivity(
                **{**entry, "alone": Outcome(**entry["alone"]),
                   "without": Outcome(**entry["without"])}
            )
            for entry in data["layers"]
        )  # fmt: skip
        return cls(data["images"], Outcome(**data["fp32"]), Outcome(**data["int8"]), layers)


def measure_sensitivity(
    model: ModelProto,
    table: CalibrationTable,
    evaluate: Evaluate,
    shape: Sequence[int],
    images: int,
) -> Sensitivity:
    """Evaluate 2L + 2 networks: fp32, all int8, and for each of L layers it alone and all but it.

    Args:
        model: the float32 network that the table is of.
        table: its ranges.
        evaluate: judges a network, `evaluator` on validation images for one.
        shape: of the input, [1, C, H, W], at which multiply-accumulates are counted.
        images: how many images `evaluate` has, for the record.

    Raises:
        KDError: `calib-table`; what `evaluate` raises.
    """
    macs = layer_macs(model, shape)
    total = sum(macs.values())
    layers = choose_layers(model, None)
    names = [layer.name for layer in layers]
    found = []
    for layer in layers:
        others = [name for name in names if name != layer.name]
        found.append(
            LayerSensitivity(
                layer.name,
                layer.node.op_type,
                macs[layer.name],
                macs[layer.name] / total,
                alone=evaluate(insert_qdq(model, table, layers=[layer.name])),
                without=evaluate(insert_qdq(model, table, layers=others)),
            )
        )
    found.sort(key=lambda entry: (entry.alone.sqnr_db, entry.layer))
    int8 = evaluate(insert_qdq(model, table))
    return Sensitivity(images, evaluate(model), int8, tuple(found))


def evaluator(
    reference: ModelProto,
    images: Callable[[], Iterable[Floats]],
    metric: Callable[[Sequence[Floats]], float],
) -> Evaluate:
    """Judges networks on the same images, by ONNX Runtime on the CPU, Q/DQ pairs as written.

    Args:
        reference: the fp32 network; its outputs are computed once and kept, images are not.
        images: gives the images anew, float32 [1, C, H, W] each, read one at a time.
        metric: the task's metric of the outputs, in the images' order.

    Raises:
        KDError: `sensitivity-empty`: there is no image.
    """
    truth = _outputs(reference, images())
    if not truth:
        raise KDError(
            "sensitivity-empty",
            "there is no image to evaluate quantised networks on",
            where="[data] val",
            fix="list at least one readable validation image",
        )

    def evaluate(model: ModelProto) -> Outcome:
        found = _outputs(model, images())
        return Outcome(float(metric(found)), pooled_sqnr(truth, found))

    return evaluate


def photo_evaluator(
    reference: ModelProto, photos: Sequence[Photo], prepare: Preprocess, task: Task, metric: Metric
) -> Evaluate:
    """`evaluator` on photos, by a metric of their task.

    Raises:
        KDError: `sensitivity-empty`; what reading a photo raises.
    """
    truth = [task.truth(photo) for photo in photos]
    frames: list[Frame] = []  # of the images, once they were read

    def images() -> Iterator[Floats]:
        frames.clear()
        for photo in photos:
            given, frame = prepare.view(photo)
            frames.append(frame)
            yield given

    def score(outputs: Sequence[Floats]) -> float:
        seen = [task.within(o, frame) for o, frame in zip(outputs, frames, strict=True)]
        return metric(task.errors([task.predictions(o)[0] for o in seen], truth))

    return evaluator(reference, images, score)


def _outputs(model: ModelProto, images: Iterable[Floats]) -> list[Floats]:
    session = cpu_session(model, as_written=True)
    return [run_session(session, image) for image in images]
