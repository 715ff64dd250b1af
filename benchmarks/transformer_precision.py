"""What half precision and int8 cost a transformer: the product's networks against naive int8.

The ViT-tiny of `inherit_accuracy.py` is built for the Jetson by the product's own stages, as far as
the choice of a precision: half as wide, distilled, exported, calibrated. Every form of that student
is then run on the test photos: what `auto` chose, fp16, int8 and mixed as the product writes them,
and as a control int8 with more pairs than the product sets: at the products of attention, at the
residual sums, and at every sum, product, norm, softmax and activation.

    python benchmarks/transformer_precision.py --data FOLDER --work FOLDER [-o FILE]

The folders are those of `inherit_accuracy.py`. Int8 runs in ONNX Runtime on the CPU, each pair as
written. fp16 is emulated as the export stage's `parity.json` has it: weights, and what each module
gives, rounded to float16. No latency is measured here; `auto` chooses by the predicted one.
"""

import argparse
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import csv_tables
import numpy as np
import onnx
import torch
from inherit_accuracy import EXAMPLE, Bench
from inherit_networks import without_operators
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper
from safetensors.torch import save_file

from kdcompile.calib.collect import collect
from kdcompile.calib.observers import find_calibrator
from kdcompile.config.load import load_spec
from kdcompile.core.store import Artifact
from kdcompile.data.photo import Photo
from kdcompile.data.splits import evenly
from kdcompile.models.shrunk import load_student
from kdcompile.onnx_graph.fp16 import float_tensors
from kdcompile.onnx_graph.graph import copied
from kdcompile.onnx_graph.session import cpu_session
from kdcompile.passes.export import half_outputs, prepared
from kdcompile.passes.manager import make_plan
from kdcompile.tasks.task import preprocess_of

NETWORK, TARGET, STEPS = "ViT-tiny", "jetson", 600
COLUMNS = ("precision", "what", "top1", "lost")
SETS = (
    'teacher.model="inherit_networks.py:vit_tiny"', 
    f'target="{TARGET}"', f"distill.steps={STEPS}", "distill.batch=32", "distill.lr=1e-3",
    'gates.accuracy={ max_increase = "100%", margin = "100%" }',
)  # fmt: skip
FORMS = {
    "student.onnx": ("fp32", "the student"),
    "student_int8.onnx": ("int8", "the product's: linear layers"),
    "student_mixed.onnx": ("mixed", "the product's: int8 and fp16"),
}
Floats = NDArray[np.float32]
Wanted = Callable[[NodeProto, bool], bool]
MORE: dict[str, Wanted] = {
    "and the products of attention": lambda node, dynamic: node.op_type == "MatMul" and dynamic,
    "and the sums": lambda node, dynamic: node.op_type == "Add" and dynamic,
    "naive: sums, products, norms, softmax and activations": lambda node, dynamic: (
        node.op_type in {"LayerNormalization", "Softmax", "Erf", "Mul"}
        or (node.op_type in {"Add", "MatMul"} and dynamic)
    ),
}


def with_more_pairs(
    quantised: ModelProto, reference: ModelProto, images: Iterable[Floats], wanted: Wanted
) -> ModelProto:
    """A quantised network with a pair at each computed input of more nodes.

    Args:
        quantised: the product's.
        reference: the same in float32, whose tensors have the same names.
        images: to calibrate with, as the product does.
        wanted: of a node, and whether two or more of its inputs are computed.
    """
    result, data = copied(quantised), float_tensors(reference)
    chosen = [
        node
        for node in result.graph.node
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"}
        and wanted(node, len({name for name in node.input if name in data}) > 1)
    ]
    names = sorted({name for node in chosen for name in node.input if name in data})
    choose = find_calibrator("entropy")
    histograms = collect(reference, images, names)
    scales = {name: max(choose(histograms[name]) / 127.0, 1e-12) for name in names}
    made: dict[str, list[NodeProto]] = {}
    for name in names:
        scale, zero = f"{name}_more_scale", f"{name}_more_zero"
        constants = (np.float32(scales[name]), scale), (np.int8(0), zero)
        result.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(value), constant) for value, constant in constants
        )
        made[name] = [
            helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}_more_q"]),
            helper.make_node("DequantizeLinear", [f"{name}_more_q", scale, zero], [f"{name}_more"]),
        ]
    body: list[NodeProto] = [
        pair for name in names if _is_input(result, name) for pair in made[name]
    ]
    outputs = {output.name for output in result.graph.output}
    inner = {id(node) for node in chosen}
    for node in result.graph.node:
        fresh = NodeProto.FromString(node.SerializeToString())
        if id(node) in inner:
            fresh.input[:] = [f"{n}_more" if n in made else n for n in node.input]
        body.append(fresh)
        body += [pair for n in node.output if n in made and n not in outputs for pair in made[n]]
    del result.graph.node[:]
    result.graph.node.extend(body)
    onnx.checker.check_model(result)
    return result


def _is_input(model: ModelProto, name: str) -> bool:
    return name in {value.name for value in model.graph.input}


def top1(outputs: Iterable[Floats], photos: Iterable[Photo]) -> float:
    """The share of photos that are classified rightly."""
    pairs = zip(outputs, photos, strict=True)
    return float(np.mean([int(output.argmax()) == photo.label for output, photo in pairs]))


def project(bench: Bench) -> Path:
    """A folder with the network's code, its trained weights and a spec."""
    folder = bench.work / "vit"
    folder.mkdir(parents=True, exist_ok=True)
    state = bench.teacher(NETWORK).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "teacher.safetensors")
    shutil.copy(Path(__file__).with_name("inherit_networks.py"), folder)
    shutil.copy(EXAMPLE, folder)
    return folder / EXAMPLE.name


def main() -> None:
    """Build, run every form, write the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--work", type=Path, required=True)
    options.add_argument("-o", "--output", type=Path, default=Path(__file__).with_suffix(".csv"))
    given = options.parse_args()
    torch.set_num_threads(1)
    library = without_operators()
    bench = Bench(given.data, given.work.resolve(), given.work / "teachers.csv")
    spec = project(bench)
    weights = spec.with_name("teacher.safetensors")
    sets = [*SETS, f'data.root="{bench.data}"', f'teacher.weights="{weights}"']
    work = make_plan(load_spec(spec, sets))
    made = {name: work.make(name) for name in ("distill", "export", "calibrate", "compile")}
    prepare, test = preprocess_of(work.spec), bench.splits.test
    images = prepared(test, prepare)
    chosen = prepared(evenly(bench.splits.train, work.spec.quantize.images), prepare)
    student = load_student(work.spec, made["distill"], bench.teacher(NETWORK))
    rows: list[dict[str, object]] = []

    def keep(precision: str, what: str, outputs: Iterable[Floats]) -> None:
        found = top1(outputs, test)
        first = float(str(rows[0]["top1"])) if rows else found
        values = (precision, what, f"{found:.4f}", f"{100 * (first - found):.2f}")
        rows.append(dict(zip(COLUMNS, values, strict=True)))
        sys.stdout.write("  ".join(map(str, rows[-1].values())) + "\n")
        csv_tables.write(given.output, COLUMNS, rows)

    def run(model: ModelProto) -> Iterable[Floats]:
        session = cpu_session(model, as_written=True, threads=1)
        feed = session.get_inputs()[0].name
        return (session.run(None, {feed: image})[0] for image in images)

    files = {name: path for artifact in made.values() for name, path in _files(artifact).items()}
    for name, (precision, what) in FORMS.items():
        if name in files:
            keep(precision, what, run(onnx.load(files[name])))
    keep("fp16", "every module's output rounded", half_outputs(student, images))
    choice = made["compile"].json("choice.json")["precision"]
    auto = next(row for row in rows if row["precision"] == choice)
    rows.append({**auto, "precision": "auto", "what": f"chose {choice}"})
    csv_tables.write(given.output, COLUMNS, rows)
    reference, int8 = (onnx.load(files[n]) for n in ("student.onnx", "student_int8.onnx"))
    for what, wanted in MORE.items():
        keep("int8", what, run(with_more_pairs(int8, reference, chosen, wanted)))
    del library


def _files(artifact: Artifact) -> dict[str, Path]:
    return {name: artifact.file(name) for name in artifact.files if name.endswith(".onnx")}


if __name__ == "__main__":
    main()
