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


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A folder with the sample, compiled, and an engine that echoes."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    folder = tmp_path_factory.mktemp("boxes")
    task = find_task("detection")
    write_cpp(folder, PREPROCESS.to_json(), IO, "detection", CLASSES, task.settings())
    compile_(folder, "-o", str(folder / "infer"))
    save_engine(folder, b"echo engine")
    return folder


@pytest.mark.parametrize(("seen", "count"), [(SIZE, 3), ((32, 30), 2), ((20, 48), 2), ((6, 7), 1)])
def test_the_sample_finds_the_boxes_of_the_task(sample, tmp_path, seen, count):
    """Of smaller photos those that the photo shows: the padding, of zeros, is full of boxes."""
    whole = maps()
    scale = (1 + np.arange(whole.size) % 97).reshape(whole.shape)
    given = np.zeros_like(whole)
    given[..., : seen[0], : seen[1]] = whole[..., : seen[0], : seen[1]]
    part = np.ascontiguousarray((given / scale)[..., : seen[0], : seen[1]], np.float32)
    np.save(tmp_path / "a.npy", part)
    done = infer(sample, tmp_path / "a.npy")
    assert done.returncode == 0, done.stderr
    told = [row.split() for row in done.stdout.split("\t")[1].split("; ")]
    task = find_task("detection")
    found = task.answer(given, Frame(seen, seen, SIZE))
    assert len(found) == count
    assert seen == SIZE or len(task.answer(given, Frame(SIZE, SIZE, SIZE))) > 10 * count
    assert [row[0] for row in told] == [CLASSES[int(kind)] for kind in found[:, 5]]
    numbers = np.array([[float(value) for value in row[1:]] for row in told])
    assert numbers[:, 0] == pytest.approx(found[:, 4], abs=1e-4)
    assert numbers[:, 1:] == pytest.approx(found[:, :4], abs=1e-3)
