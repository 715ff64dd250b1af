"""The C++ sample of a detector finds the boxes that the task finds."""

import shutil

import numpy as np
import pytest
from cpp_sample import compile_, infer, save_engine

from kdcompile.bundle.samples import Tensor, write_cpp
from kdcompile.data.preprocess import Frame, Preprocess
from kdcompile.tasks.task import find_task

SIZE = (32, 48)
CLASSES = ("disc", "square")
PREPROCESS = Preprocess(
    6, (0.0,) * 6, (1.0,) * 6, SIZE, SIZE
)  # the played engine echoes, as "density"
IO = ([Tensor("image", "FLOAT", (1, 6, *SIZE))], [Tensor("density", "FLOAT", (1, 6, *SIZE))])


def maps() -> np.ndarray:
    """Noise below the threshold, and some peaks, two of which are one thing."""
    random = np.random.default_rng(0)
    found = random.normal(-6, 0.5, (1, 6, *SIZE)).astype(np.float32)
    found[:, 2:] = random.normal(1.7, 0.1, (1, 4, *SIZE))
    for kind, y, x, score in ((0, 5, 6, 2.0), (0, 5, 8, 1.5), (1, 6, 6, 1.0), (1, 31, 47, 0.5)):
        found[0, kind, y, x] = score
    return found


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_the_sample_finds_the_boxes_of_the_task(tmp_path):
    task = find_task("detection")
    write_cpp(tmp_path, PREPROCESS.to_json(), IO, "detection", CLASSES, task.settings())
    compile_(tmp_path, "-o", str(tmp_path / "infer"))
    save_engine(tmp_path, b"echo engine")
    wanted = maps()
    scale = 1 + np.arange(wanted.size) % 97
    np.save(tmp_path / "a.npy", (wanted.ravel() / scale).reshape(wanted.shape).astype(np.float32))
    done = infer(tmp_path, tmp_path / "a.npy")
    assert done.returncode == 0, done.stderr
    told = [row.split() for row in done.stdout.split("\t")[1].split("; ")]
    found = task.answer(wanted, Frame(SIZE, SIZE, SIZE))
    assert len(found) == 3
    assert [row[0] for row in told] == [CLASSES[int(kind)] for kind in found[:, 5]]
    numbers = np.array([[float(value) for value in row[1:]] for row in told])
    assert numbers[:, 0] == pytest.approx(found[:, 4], abs=1e-4)
    assert numbers[:, 1:] == pytest.approx(found[:, :4], abs=1e-3)
