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
import small_masks
from soak_results import told

pytestmark = pytest.mark.soak
FEW, MANY, KINDS = 500, 5000, 8
MOST_KB = 24  # that each photo may add: half of its mask; decoded it has 144
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


def _child(folder):
    done = subprocess.run(
        [sys.executable, "-c", CHILD], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(SUPPORT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_memory_does_not_grow_with_the_photos_that_are_judged(tmp_path):
    add, listed = _masks(tmp_path)
    names = [add(number) for number in range(MANY)]
    peaks = {}
    for count in (FEW, FEW, MANY):  # the first plan runs the search, which takes more
        listed(names[:count])
        peaks[count] = _child(tmp_path)
        assert peaks[count]["photos"] == count
    few, many = peaks[FEW], peaks[MANY]
    grown = many["judged"] - few["judged"]
    each = grown * 1024 / (MANY - FEW)
    told("judged-segmentation", f"{FEW} photos take {few['planned']:.0f} MB to plan and "
         f"{few['judged']:.0f} to judge, {MANY} {many['planned']:.0f} and {many['judged']:.0f}: "
         f"{each:+.1f} kB a photo of at most {MOST_KB}")  # fmt: skip
    assert each <= MOST_KB
