"""A photo smaller, larger and of odd size than the input, for every built-in task.

`run`, the Python sample, validation and the gates say the same of it. Of a map, that is what the
photo's own cells say; a class, a value and any other outputs are of the whole input, padded.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from joined_sample import sample_of
from PIL import Image
from torch import nn

from kdcompile.bundle.run import BundleRun
from kdcompile.bundle.run_tensors import TensorRun
from kdcompile.core import plugins
from kdcompile.core.ports import Port, Ports
from kdcompile.data.photo import Photo, read_pixels
from kdcompile.data.preprocess import Preprocess, RowPreprocess
from kdcompile.distill.evaluate import predict
from kdcompile.gates.evaluate import evaluate
from kdcompile.tasks.task import find_task

SIDES = (32, 48)
CLASSES = ["low", "mid", "high"]
SIZES = {"small": (17, 23), "large": (70, 90), "odd": (33, 47), "fits": (32, 48)}
PORTS = Ports((Port("image", (1, 1, *SIDES), "float32"),))
TASKS = ("counting", "classification", "regression", "generic")
ELSEWHERE = ("segmentation", "detection")  # in test_photo_sizes_maps.py


class Counter(nn.Module):
    """Two people in each cell of 8 x 8, whatever is there: only the mask knows the padding."""

    def forward(self, image):
        return torch.full((len(image), 1, *(side // 8 for side in image.shape[2:])), 2.0)


class Mean(nn.Module):
    """So many values, which the mean of the whole input decides."""

    def __init__(self, values):
        super().__init__()
        self.factors = torch.arange(1.0, values + 1)

    def forward(self, image):
        return image.mean((1, 2, 3))[:, None] * self.factors


def network_of(kind):
    return {"counting": Counter(), "regression": Mean(1)}.get(kind, Mean(3)).eval()


def preprocess_of(kind):
    padding = "mirror" if find_task(kind).is_dense else "mean"
    return Preprocess(1, (0.4,), (0.3,), SIDES, SIDES, padding)


@pytest.fixture(scope="module", params=SIZES, ids=str)
def photo(request, tmp_path_factory):
    """Brighter than the padding's mean colour, so that padding changes a mean."""
    path = tmp_path_factory.mktemp(request.param) / "photo.png"
    pixels = np.random.default_rng(3).integers(150, 256, SIZES[request.param], np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_these_are_all_tasks():
    built_in = {name for name in plugins.names("tasks") if name.isalpha()}
    assert {*TASKS, *ELSEWHERE} == built_in


@pytest.mark.parametrize("kind", [kind for kind in TASKS if kind != "generic"])
def test_everybody_says_the_same_of_a_photo(photo, kind, tmp_path):
    infer = sample_of(kind, tmp_path)
    task, preprocess, network = find_task(kind), preprocess_of(kind), network_of(kind)
    classes = CLASSES if task.has_classes else None
    constants, pixels = preprocess.to_json(), read_pixels(photo, 1)
    frame = preprocess.frame(*pixels.shape[:2])

    def runner(image):
        with torch.no_grad():
            return network(torch.from_numpy(image)).numpy()

    if kind == "counting":
        wanted = 2.0 * np.prod(frame.seen) / 64  # of 8 x 8 pixels each, none of the padding's
    else:
        whole = np.full(SIDES, 0.0, np.float32)
        whole[: frame.seen[0], : frame.seen[1]] = preprocess(pixels)[
            0, 0, : frame.seen[0], : frame.seen[1]
        ]
        mean = float(whole.mean())  # the mean colour is 0, and in the mean
        wanted = mean if kind == "regression" else 2.0

    label = {} if kind == "counting" else {"label": 2.0}
    given = [Photo("a", path=photo, **label)]
    (validated,) = predict(network, given, preprocess, torch.device("cpu"), task)
    pair = ("student_fp32", "student")
    judged = evaluate(dict.fromkeys(pair, runner), pair, given, preprocess, task, classes)
    out = tmp_path / "drawn" if task.is_dense else None
    ((_, row),) = BundleRun(task, classes, preprocess, runner, "fp32", [photo], out)
    manifest = {"task": kind, "classes": classes}
    output = infer.predict(
        lambda inputs: {"": runner(inputs["image"])},
        infer.prepare(str(photo), constants), manifest, constants,
    )  # fmt: skip
    told = infer.meaning(output, manifest)
    assert validated == pytest.approx(wanted, rel=1e-5)
    assert judged.predicted["student"] == pytest.approx([wanted], rel=1e-5)
    if kind == "classification":
        assert (row["class"], told.split("\t")[0]) == ("high", "high")
        assert float(told.split("\t")[1]) == pytest.approx(row["probability"], abs=1e-4)
    else:
        key = "count" if kind == "counting" else "value"
        assert row[key] == pytest.approx(wanted, rel=1e-5)
        assert float(told) == pytest.approx(wanted, abs=1e-3)
    assert (row["overlay"] is not None) is task.is_dense


def test_only_the_photo_is_drawn(photo, tmp_path, monkeypatch):
    """The map that is laid over the photo is 0 in what is padded."""
    drawn = []
    monkeypatch.setattr(
        "kdcompile.bundle.run.overlay_png",
        lambda pixels, density, title, extent: drawn.append((pixels, density, extent)) or b"png",
    )
    preprocess = preprocess_of("counting")
    network = Counter()
    list(
        BundleRun(
            find_task("counting"), None, preprocess,
            lambda image: network(torch.from_numpy(image)).numpy(), "fp32", [photo], tmp_path / "o",
        )
    )  # fmt: skip
    ((pixels, density, extent),) = drawn
    frame = preprocess.frame(*pixels.shape[:2])
    rows, columns = (-(-side // 8) for side in frame.seen)  # cells that the photo has a part of
    assert density[rows:].sum() == density[:, columns:].sum() == 0
    assert density.sum() == pytest.approx(2.0 * np.prod(frame.seen) / 64)
    # and the whole input, which the map covers, is as large beside the photo as its frame says
    assert extent == pytest.approx(
        tuple(
            plane * have / seen
            for plane, have, seen in zip(frame.plane, frame.photo, frame.seen, strict=True)
        )
    )


def test_other_outputs_are_of_the_whole_input(photo, tmp_path, monkeypatch):
    infer = sample_of("generic", tmp_path)
    inner = preprocess_of("generic")
    preprocess, network = RowPreprocess.of(PORTS, inner), network_of("generic")
    wanted = inner(read_pixels(photo, 1)).mean() * np.arange(1, 4)

    def rows(row):
        with torch.no_grad():
            return network(torch.from_numpy(row.reshape(1, 1, *SIDES))).numpy().reshape(1, -1)

    task = find_task("generic")
    run = TensorRun(task, None, preprocess, rows, "fp32", [photo], tmp_path / "out")
    run.outputs = Ports((Port("scores", (1, 3), "float32"),))
    ((_, row),) = run
    monkeypatch.chdir(tmp_path)
    constants = json.loads(json.dumps(preprocess.to_json()))
    inputs = infer.tensors(str(photo), constants)
    infer.written(str(photo), {"scores": network(torch.from_numpy(inputs["image"])).numpy()}, set())
    for file in (Path(row["file"]), tmp_path / "photo_outputs.npz"):
        with np.load(file) as arrays:
            assert arrays["scores"][0] == pytest.approx(wanted, rel=1e-5)
