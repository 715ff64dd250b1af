"""A counting build of 16 x 16 photos, its networks written by hand; its stages run one by one.

Calibrate, compile and verify are the real stages; what comes before them is written here.
"""

import copy
import itertools
import json

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx_graphs import chain

from kdcompile.config.load import load_spec
from kdcompile.config.step import Step
from kdcompile.core.files import write_json
from kdcompile.core.store import Store
from kdcompile.data.preprocess import Preprocess
from kdcompile.onnx_graph.fp16 import to_bf16, to_fp16
from kdcompile.passes.stages import STAGES

PHOTOS = """
import numpy as np
from kdcompile.data.photo import Photo

def photos(root, split):
    rng = np.random.default_rng(len(split))
    made = []
    for index in range({"train": 6, "val": 4, "test": 9}[split]):
        xy = rng.uniform(0, 16, (30 + index, 2)).astype(np.float32)
        array = rng.integers(0, 256, (16, 16, 3), np.uint8)
        made.append(Photo(f"{split}{index}", xy, array=array))
    return made
"""
SPEC = """
target = "h100"
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "data.py:photos"
root = "."
train = "train"
val = "val"
test = "test"
[export]
shape = [1, 3, 16, 16]
[quantize]
images = 4
[gates]
speedup = { min = 1.5 }
size_mb = { max = 1 }
"""
copies, COPIED = itertools.count(1), 1000  # so that keys of copies differ in their one store
PRICED = ("fp32", "fp16", "bf16", "int8", "fp8")
AGREED = {"sqnr_db": 120.0, "max_rel_error": 1e-6, "n": 2, "finite": True}


def slower(model, layers):
    """The same function with 1x1 convolutions by 1 after it, `t0`, `t1`, ..."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph, last = made.graph, model.graph.output[0].name
    graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "one"))
    for i in range(layers):
        graph.node.append(helper.make_node("Conv", [last, "one"], [f"t{i}"], f"t{i}"))
        last = f"t{i}"
    graph.output[0].name = last
    return made


def estimates(teacher, student):
    """What a search writes of two networks that take so many ms at every precision."""
    ratio = teacher / student
    band = {"value": ratio, "low": ratio / 1.5, "high": ratio * 1.5}
    costs = {"teacher": _estimate(teacher), "student": _estimate(student)}
    return {**costs, "speedups": dict.fromkeys(PRICED, band)}


def _estimate(ms):
    one = {"ms": ms, "low_ms": ms / 1.5, "high_ms": ms * 1.5, "validated": True, "bounds": {}}
    return {"macs": 9, "params": 4} | dict.fromkeys(PRICED, one)


class SmallBuild:
    """A folder with a spec, and its artifacts by stage in `made`."""

    def __init__(self, root, student=None, teacher=None, teacher_mae=1000.0, sets=()):
        self.root, self.made, self.runs = root, {}, 0
        self.store = Store(root / "store")
        (root / "data.py").write_text(PHOTOS)
        (root / "kdcompile.toml").write_text(SPEC)
        self.sets = sets
        student = student or chain(3)
        files = self._networks(student, teacher or slower(student, 8))
        shape = list(student.graph.input[0].type.tensor_type.shape.dim)[2].dim_value or 16
        prepare = Preprocess(3, (0.5,) * 3, (0.25,) * 3, (16, 16), (shape, shape))
        judged = {"val_mae": teacher_mae, "val_rmse": teacher_mae, "output": [1, 2, 2]}
        self._put("teacher", {"teacher.json": judged})
        self._put("search", {"estimate.json": estimates(8, 2)})
        step = {"step": 0, "loss": 1.0, "terms": {"hard": 1.0}, "lr": 1e-3, "ms": 1.0}
        result = {"val_mae": 1.1, "recipe": "none", "steps": 1, "dropped": []}
        self._put("distill", {"result.json": result, "metrics.jsonl": json.dumps(step) + "\n"})
        agreed = dict.fromkeys(("student", "teacher", "student_fp16"), AGREED)
        self._put("export", files | {"parity.json": agreed, "preprocess.json": prepare.to_json()})

    @staticmethod
    def _networks(student, teacher):
        return {
            "student.onnx": student, "student_fp16.onnx": to_fp16(student),
            "student_bf16.onnx": to_bf16(student),
            "teacher.onnx": teacher, "teacher_fp16.onnx": to_fp16(teacher),
        }  # fmt: skip

    def _put(self, stage, files):
        def build(folder):
            for name, content in files.items():
                if isinstance(content, onnx.ModelProto):
                    onnx.save(content, folder / name)
                elif isinstance(content, str):
                    (folder / name).write_text(content)
                else:
                    write_json(folder / name, content)
            return {}

        self.made[stage] = self.store.make(stage, "0" * 24, build)

    def run(self, name, target, board=None, sets=()):
        """Run a stage on what is made, with the sections and the inputs that it declares."""
        stage, self.runs = STAGES[name], self.runs + 1
        spec = load_spec(self.root / "kdcompile.toml", (*self.sets, *sets)).only(stage.sections)
        inputs = {needed: self.made[needed] for needed in stage.inputs}
        step = Step(name, f"{self.runs:024d}", spec, inputs, board if stage.on_machine else None)
        self.made[name] = stage.load()(step, self.store, target)
        return self.made[name]

    def copy(self):
        """The same artifacts, to go on from without changing this one."""
        other = copy.copy(self)
        other.made, other.runs = dict(self.made), self.runs + COPIED * next(copies)
        return other

    def report(self):
        """The report of `verify`, as plain values."""
        return json.loads(self.made["verify"].file("report.json").read_text())
