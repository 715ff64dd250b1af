"""Planted faults that `kdcompile bisect` must find and name, at an early, a middle and a late node.

    python benchmarks/bisect_faults.py [-o benchmarks/bisect_faults.json]

Two networks: the digits example's teacher with its trained weights, and a residual one with
normalisations over channels and untrained weights. Images are the example's canvases of scanned
digits. Each fault is written into a copy of the network's own ONNX file; the ladder must fail at
it, and the search must name the node and the module that were touched. Sound pairs must pass.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from bisect_networks import NETWORKS, copied, exported, in_precision
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from kdcompile.core.files import write_json
from kdcompile.debug.locate import Finding, locate
from kdcompile.debug.runners import OnnxSide
from kdcompile.debug.tensors import module_of
from kdcompile.debug.tolerance import of_numbers
from kdcompile.debug.variants import Ladder, Rung, climb
from kdcompile.onnx_graph.fp16 import to_fp16
from kdcompile.tasks.metric import MAE
from kdcompile.tasks.task import find_task

TASK = find_task("counting")
MARGIN = 0.15
SATURATION, EPSILON = 20.0, 1e-2
LARGEST_WEIGHT = 4e4  # a float16 file cannot hold one over 65504
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Fault:
    """What is planted.

    Args:
        name: of it.
        precision: of the rung that has it.
        operator: of the nodes that it may befall.
        plant: changes one node of a network, in place; False where that node cannot have it.
    """

    name: str
    precision: str
    operator: str
    plant: Callable[[ModelProto, NodeProto], bool]


def wrong_padding(model: ModelProto, node: NodeProto) -> bool:
    """Zeros on the right and below only, as some frameworks pad."""
    pads = next((a for a in node.attribute if a.name == "pads"), None)
    if pads is None or not any(pads.ints):
        return False
    top, left, bottom, right = pads.ints
    pads.ints[:] = [0, 0, top + bottom, left + right]
    return True


def swapped_axes(model: ModelProto, node: NodeProto) -> bool:
    """A transposition with height and width exchanged."""
    perm = next(a for a in node.attribute if a.name == "perm")
    swap = {2: 3, 3: 2} if list(perm.ints) == [0, 2, 3, 1] else {1: 2, 2: 1}
    perm.ints[:] = [swap.get(axis, axis) for axis in perm.ints]
    return True


def wrong_epsilon(model: ModelProto, node: NodeProto) -> bool:
    """Another framework's default."""
    next(a for a in node.attribute if a.name == "epsilon").f = EPSILON
    return True


def saturating_scale(model: ModelProto, node: NodeProto) -> bool:
    """A range from too few images: most values are clipped."""
    scale = next(t for t in model.graph.initializer if t.name == node.input[1])
    values = numpy_helper.to_array(scale)
    if values.size != 1:
        return False
    scale.CopyFrom(numpy_helper.from_array(np.asarray(values / SATURATION), scale.name))
    return True


def fp16_overflow(model: ModelProto, node: NodeProto) -> bool:
    """A layer whose sums leave float16: its weights are large, and those of the next one small.

    The fp32 network stays as it is but for rounding, and is changed with it (see `planted`).
    """
    readers = [n for n in model.graph.node if node.output[0] in n.input]
    after = readers[0] if len(readers) == 1 and readers[0].op_type == "Relu" else None
    nexts = [n for n in model.graph.node if after is not None and after.output[0] in n.input]
    if after is None or len(nexts) != 1 or nexts[0].op_type != "Conv":
        return False
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    largest = max(float(np.abs(weights[name]).max()) for name in node.input[1:])
    gain = 2.0 ** np.floor(np.log2(LARGEST_WEIGHT / largest))
    for name, factor in [(n, gain) for n in node.input[1:]] + [(nexts[0].input[1], 1 / gain)]:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(weights[name] * np.float32(factor), name))
    return True


def lost_relu(model: ModelProto, node: NodeProto) -> bool:
    """A fusion that forgets the activation: the layer before it gives out its name."""
    before = next(n for n in model.graph.node if node.input[0] in n.output)
    readers = [n for n in model.graph.node if node.input[0] in n.input]
    if len(readers) != 1:
        return False
    before.output[0] = node.output[0]
    model.graph.node.remove(node)
    return True


FAULTS = (
    Fault("wrong padding", "fp32", "Conv", wrong_padding),
    Fault("swapped axes", "fp32", "Transpose", swapped_axes),
    Fault("wrong epsilon", "fp32", "LayerNormalization", wrong_epsilon),
    Fault("saturating scale", "int8", "QuantizeLinear", saturating_scale),
    Fault("fp16 overflow", "fp16", "Conv", fp16_overflow),
    Fault("fused ReLU lost", "fp32", "Relu", lost_relu),
)


def ladder_of(
    reference: ModelProto, suspect: ModelProto, precision: str, images: Sequence[Floats]
) -> Ladder:
    """Two rungs: the fp32 file, and another one beside it.

    The annotated values are the network's own with an error of a tenth.
    """
    side = OnnxSide(reference)
    outputs = [side.run(image)[side.output] for image in images]
    predicted = np.array([float(TASK.predictions(output)[0]) for output in outputs])
    true = predicted * (1 + 0.1 * np.random.default_rng(0).standard_normal(len(predicted)))
    rungs = (
        Rung("onnx", "fp32 ONNX", side=side, model=reference),
        Rung(precision, f"{precision} ONNX", precision, OnnxSide(suspect), model=suspect),
    )
    tolerance = of_numbers(TASK, MAE, MARGIN, predicted, true)
    return Ladder(rungs, images, TASK, MAE, list(true), tolerance, 20.0, "canvases of digits")


def find(ladder: Ladder) -> Finding | None:
    """Where the second rung leaves the first; None where it passes."""
    step = climb(ladder)[1]
    return None if step.verdict == "passed" else locate(ladder, *ladder.rungs, step)


def places(fault: Fault, base: ModelProto) -> list[int]:
    """An early, a middle and a late node that can have a fault."""
    found = [
        i
        for i, node in enumerate(base.graph.node)
        if node.op_type == fault.operator
        and fault.plant(other := copied(base), other.graph.node[i])
    ]
    return sorted({found[0], found[len(found) // 2], found[-1]}) if found else []


def planted(
    fault: Fault, model: ModelProto, base: ModelProto, place: int
) -> tuple[ModelProto, ModelProto, str]:
    """Reference, suspect and the touched node's name.

    Args:
        fault: to plant.
        model: the network in fp32.
        base: in the precision that the fault needs; for fp16 in fp32, which alone can be changed.
        place: of the node.
    """
    changed, name = copied(base), base.graph.node[place].name
    fault.plant(changed, changed.graph.node[place])
    # what overflows in half is sound in fp32
    return (
        (changed, to_fp16(changed), name) if fault.precision == "fp16" else (model, changed, name)
    )


def row(
    network: str,
    fault: Fault,
    names: tuple[ModelProto, ModelProto, str],
    images: Sequence[Floats],
) -> dict[str, Any]:
    """What the search says of one planted fault."""
    reference, suspect, node = names
    found = find(ladder_of(reference, suspect, fault.precision, images))
    record: dict[str, Any] = {
        "network": network,
        "fault": fault.name,
        "nodes": len(suspect.graph.node),
        "planted": node,
        "found": None if found is None else found.named.node,
    }
    if found is None:
        return record | {"right": False}
    return record | {
        "right": is_named(node, found, reference),
        "tensor": found.tensor,
        "module": found.named.module,
        "why": list(found.why),
        "runs": found.runs,
        "tensors": found.tensors,
        "error": min(found.error, 1e30),
        "before": found.before,
    }


def is_named(node: str, found: Finding, reference: ModelProto) -> bool:
    """Whether the touched node is what was found, or its twin of the same Q/DQ pair, by name.

    A node that was lost is in the reasons: `Relu NAME of the reference ... is lost`. The module
    must be the one that the exporter wrote beside that node.
    """
    lost = [words for why in found.why if (words := why.split())[-1] == "lost"]
    told = {found.named.node, *(words[1] for words in lost)}
    twin = node.replace("_QuantizeLinear", "_DequantizeLinear")
    touched = next((n for n in reference.graph.node if n.name == node), None)
    module = None if touched is None else module_of(touched)  # none: it was put in afterwards
    named = found.named.module is not None and module in (None, found.named.module)
    return found.sudden and named and bool({node, twin} & told)


def table() -> list[dict[str, Any]]:
    """Every fault at every place, and the sound pairs."""
    torch.manual_seed(0)
    rows = []
    for network in NETWORKS:
        model, images = exported(network)
        for precision in ("fp32", "fp16", "int8"):
            suspect = in_precision(model, precision, images)
            found = find(ladder_of(model, suspect, precision, images))
            rows.append(
                {
                    "network": network, "fault": f"none, {precision}", "planted": None,
                    "nodes": len(suspect.graph.node), "right": found is None,
                    "found": None if found is None else found.named.node,
                }
            )  # fmt: skip
        for fault in FAULTS:
            quantised = fault.precision == "int8"
            base = in_precision(model, "int8", images) if quantised else model
            rows += [
                row(network, fault, planted(fault, model, base, place), images)
                for place in places(fault, base)
            ]
    return rows


def lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table in Markdown."""
    head = ("network", "fault", "planted", "found", "tensor", "module", "runs", "tensors", "right")
    text = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for entry in rows:
        cells = ("" if entry.get(key) is None else str(entry[key]) for key in head)
        text.append("| " + " | ".join(cells) + " |")
    right = sum(entry["right"] for entry in rows)
    return [*text, "", f"{right} of {len(rows)} right"]


def main() -> int:
    """Print the table; exit 1 where a row is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, help="write the rows as JSON")
    given = parser.parse_args()
    rows = table()
    print("\n".join(lines(rows)))
    if given.output is not None:
        write_json(
            given.output, {"onnx": onnx.__version__, "torch": torch.__version__, "rows": rows}
        )
    return 0 if all(entry["right"] for entry in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
