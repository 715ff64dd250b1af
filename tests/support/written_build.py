"""A spec with its data, whose stages only write the files that other stages take.

The keys, the store and the reasons are the real ones.
"""

import json

import numpy as np
from PIL import Image

from kdcompile.config.load import load_spec
from kdcompile.passes.manager import make_plan
from kdcompile.passes.stages import STAGES

MODEL = "import torch\nfrom blocks.wide import layers\n\ndef build():\n    return layers()\n"
SPEC = """
target = "jetson"
[teacher]
model = "model.py:build"
weights = "w.safetensors"
[data]
format = "points-jsonl"
root = "data"
[distill]
crop = 8
"""
SPLITS = {"train": range(4), "val": range(4, 6), "test": range(6, 9)}
FILES = {
    "teacher": ("teacher.json",),
    "search": ("architecture.json", "initial.safetensors", "estimate.json"),
    "distill": ("student.safetensors", "architecture.json", "metrics.jsonl", "qad.json"),
    "export": ("student.onnx", "preprocess.json"),
    "calibrate": ("calibration.json", "audit.json"),
}


def paint_file(path, value):
    """An image of one colour."""
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def write_folder(tmp_path):
    """Nine images, a teacher of two modules, and the spec."""
    images = tmp_path / "data" / "images"
    images.mkdir(parents=True)
    rows = []
    for number in range(9):
        paint_file(images / f"{number:03d}.png", 20 * number)
        with Image.open(images / f"{number:03d}.png") as image:
            image.putpixel((0, 0), (255, 255, 255))
            image.save(images / f"{number:03d}.png")
        rows.append({"image": f"images/{number:03d}.png", "points": [[1.0, float(number % 8)]]})
    (tmp_path / "data" / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split, numbers in SPLITS.items():
        text = "\n".join(f"images/{number:03d}.png" for number in numbers)
        (tmp_path / "data" / f"{split}.txt").write_text(text)
    (tmp_path / "blocks").mkdir()
    (tmp_path / "blocks" / "wide.py").write_text("def layers():\n    return None\n")
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "kdcompile.toml").write_text(SPEC)


def write_stage(step, store, target):
    """A stage: its files depend on its key, but a search finds the same student again."""
    content = "the same" if step.stage == "search" else step.key

    def build(entry):
        for name in FILES.get(step.stage, ("model.onnx",)):
            (entry / name).write_text(content)
        return {}

    return store.make(step.stage, step.key, build)


def paint(folder, number, value=251):
    """Another image in its place."""
    paint_file(folder / "data" / "images" / f"{number:03d}.png", value)


def plan_of(folder, *sets):
    return make_plan(load_spec(folder / "kdcompile.toml", sets))


def to_do(plan):
    """Steps that would run, each with its reasons."""
    found = plan.found()
    return {name: plan.why(name, found) for name in STAGES if name not in found}
