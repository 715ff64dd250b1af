"""5,000 photos of a split are planned and judged in the memory that 500 take, beside their records.

All that may stay of a photo is its entry, its prediction and, of a task of records, its record.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import small_boxes
import small_masks
from PIL import Image
from soak_results import told

pytestmark = pytest.mark.soak
FEW, MANY, KINDS = 500, 5000, 8
MOST_KB = 8  # that each photo may add; decoded it has 144, its mask 48
SIZE = (192, 256)
SUPPORT = Path(small_masks.__file__).parent
# after a plan, and after both networks of a build were run over all photos of a split
CHILD = """
import json, resource, sys
import numpy as np, torch
from kdcompile.config.load import load_spec
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import load_splits
from kdcompile.distill.evaluate import predict
from kdcompile.gates.evaluate import evaluate
from kdcompile.models.factory import load_teacher
from kdcompile.passes.manager import make_plan
from kdcompile.passes.show import describe
from kdcompile.tasks.task import preprocess_of, task_of

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

torch.set_num_threads(1)
spec = load_spec("kdcompile.toml")
describe(make_plan(spec))
planned = peak()
splits, task, prepare = load_splits(spec.data, spec.folder), task_of(spec), preprocess_of(spec)
network = load_teacher(spec).eval()
found = predict(network, splits.val, prepare, torch.device("cpu"), task)
assert len(found) == len(splits.val)

@torch.no_grad()
def run(image):
    return network(torch.from_numpy(image)).numpy()

runners = {"teacher": run, "student": run, "deployed": run}
judged = evaluate(runners, ("student", "deployed"), splits.val, prepare, task, splits.classes)
errors = task.errors(judged.predicted["deployed"], [task.truth(one) for one in splits.val])
score = task.judged.summary(errors) if hasattr(task.judged, "summary") else len(errors)
print(json.dumps({"planned": planned, "judged": peak(), "photos": len(judged.difficulty)}))
"""


def _masks(folder):
    """Photos with masks, and the spec."""
    small_masks.write(folder)
    random, root = np.random.default_rng(0), folder / "data"
    for number in range(KINDS):
        small_masks.save(folder / "kinds", str(number), *small_masks.scene(random, SIZE))

    def add(number):
        name = f"many{number:04d}"
        for part in ("images", "labels"):
            kind = folder / "kinds" / part / f"{number % KINDS}.png"
            (root / part / f"{name}.png").hardlink_to(kind)
        return name

    def listed(names):
        (root / "val.txt").write_text("\n".join(names))

    return add, listed


def _boxes(folder):
    """Photos with boxes, and the spec."""
    small_boxes.write_project(folder)
    random, root, made = np.random.default_rng(1), folder / "data", []
    for number in range(KINDS):
        pixels, rows = small_boxes.scene(random)
        Image.fromarray(np.tile(pixels, (3, 4, 1))).save(folder / f"kind{number}.png")
        made.append([[x0, y0, x1 - x0, y1 - y0, kind] for x0, y0, x1, y1, kind in rows])

    def add(number):
        (root / "images" / f"many{number:04d}.png").hardlink_to(
            folder / f"kind{number % KINDS}.png"
        )
        return number

    def listed(numbers):
        height, width = SIZE
        images = [{"id": n, "file_name": f"many{n:04d}.png", "width": width, "height": height}
                  for n in numbers]  # fmt: skip
        boxes = [(n, box) for n in numbers for box in made[n % KINDS]]
        annotations = [
            {"id": k, "image_id": n, "category_id": kind + 1, "bbox": box}
            for k, (n, (*box, kind)) in enumerate(boxes)
        ]
        whole = json.loads((root / "val.json").read_text())
        whole |= {"images": images, "annotations": annotations}
        (root / "val.json").write_text(json.dumps(whole))

    return add, listed


def _child(folder):
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_memory_does_not_grow_with_the_photos_that_are_judged(tmp_path, task):
    add, listed = {"segmentation": _masks, "detection": _boxes}[task](tmp_path)
    names = [add(number) for number in range(MANY)]
    peaks = {}
    for count in (FEW, MANY):
        listed(names[:count])
        peaks[count] = _child(tmp_path)
        assert peaks[count]["photos"] == count
    few, many = peaks[FEW], peaks[MANY]
    grown = many["judged"] - few["judged"]
    each = grown * 1024 / (MANY - FEW)
    told(f"judged-{task}", f"{FEW} photos take {few['planned']:.0f} MB to plan and "
         f"{few['judged']:.0f} to judge, {MANY} {many['planned']:.0f} and {many['judged']:.0f}: "
         f"{each:+.1f} kB a photo of at most {MOST_KB}")  # fmt: skip
    assert each <= MOST_KB
