"""A photo smaller, larger and of odd size than the input, for masks and boxes.

Of what the network says of the padding nothing is evaluated, named or drawn: by `run`, the Python
sample, validation, the gates, and home for a board. `test_cpp_boxes.py` has the C++ sample.
"""

import json

import numpy as np
import pytest
import torch
from joined_sample import sample_of
from PIL import Image
from torch import nn

from kdcompile.bundle import run
from kdcompile.bundle.run import BundleRun
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.distill.evaluate import predict
from kdcompile.gates.evaluate import evaluate
from kdcompile.tasks.task import find_task

SIDES = (32, 48)
CLASSES = ["left", "right", "padding"]
SIZES = {"small": (17, 23), "large": (70, 90), "wide": (20, 100), "odd": (33, 47), "fits": SIDES}
SEEN = {"small": (17, 23), "large": (32, 41), "wide": (9, 48), "odd": (32, 45), "fits": SIDES}
PAIR = ("student_fp32", "student")


class Canned(nn.Module):
    """A network that says one thing."""

    def __init__(self, output):
        super().__init__()
        self.output = torch.from_numpy(output)

    def forward(self, image):
        return self.output.expand(len(image), *self.output.shape[1:])


@pytest.fixture(params=SIZES)
def sized(request, tmp_path):
    """The name of a size, and a grey photo of it."""
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(3).integers(150, 256, SIZES[request.param], np.uint8)
    Image.fromarray(pixels).save(path)
    return request.param, path


def preprocess_of(kind):
    padding = "mirror" if find_task(kind).is_dense else "mean"
    return Preprocess(1, (0.4,), (0.3,), SIDES, SIDES, padding)


def logits(frame, stride):
    """Class 0 in the left half of the photo, 1 in the right one, and 2 all over the padding."""
    shape = tuple(side // stride for side in SIDES)
    named = np.where(np.arange(shape[1]) * stride < frame.seen[1] / 2, 0, 1)
    named = np.where(frame.inside(*shape) > 0, named, 2)
    return np.float32(9) * (named == np.arange(3)[:, None, None])[None].astype(np.float32)


def of_sample(infer, path, output, manifest, preprocess):
    """What the Python sample answers where the network gives that."""
    constants = preprocess.to_json()
    return infer.predict(
        lambda inputs: {"": output}, infer.prepare(str(path), constants), manifest, constants,
        infer.size_of(str(path)),
    )  # fmt: skip


@pytest.mark.parametrize("stride", [1, 8])
def test_no_pixel_of_the_padding_is_named_drawn_or_evaluated(sized, stride, tmp_path):
    size, path = sized
    task, preprocess = find_task("segmentation"), preprocess_of("segmentation")
    frame = preprocess.frame(*SIZES[size])
    assert (frame.photo, frame.seen) == (SIZES[size], SEEN[size])
    output, (height, width) = logits(frame, stride), SIZES[size]
    assert (output[0].argmax(0) == 2).any() or frame.seen == SIDES or stride == 8
    ((_, row),) = BundleRun(
        task, CLASSES, preprocess, lambda image: output, "fp32", [path], tmp_path / "drawn"
    )
    assert set(row["shares"]) == {"left", "right"}
    assert row["shares"]["left"] == pytest.approx(0.5, abs=stride / frame.seen[1])
    with Image.open(row["mask"]) as mask:
        drawn = np.asarray(mask)
    assert drawn.shape == (height, width)
    infer = sample_of("segmentation", tmp_path)
    told = of_sample(infer, path, output, {"task": "segmentation"}, preprocess)
    np.testing.assert_array_equal(told, drawn)
    photo = Photo("a", path=path, mask=drawn.copy())
    found = evaluate(
        dict.fromkeys(PAIR, lambda image: output), PAIR, [photo], preprocess, task, CLASSES
    )
    (validated,) = predict(Canned(output), [photo], preprocess, torch.device("cpu"), task)
    (judged,) = found.predicted["student"]
    assert judged.tolist() == validated.tolist()
    assert validated[0] == 0
    assert sum(validated[1:4]) == height * width  # rightly named, and nothing else
    assert sum(validated[4:]) == 0


def centres(frame):
    """A peak in the last cells that lie in the photo, and a higher one wherever padding begins."""
    maps = np.full((1, 7, 8, 12), -6.0, np.float32)
    maps[:, 3:] = np.log(0.75)
    rows, columns = (max(int(side / 4 - 0.5), 0) for side in frame.seen)
    maps[0, 1, rows, columns] = 1.0
    for y, x in ((min(rows + 2, 7), columns), (rows, min(columns + 2, 11))):
        if (x + 0.5) * 4 >= frame.seen[1] or (y + 0.5) * 4 >= frame.seen[0]:
            maps[0, 2, y, x] = 3.0
    return maps, (rows, columns)


def test_no_box_of_the_padding_is_listed_drawn_or_evaluated(sized, tmp_path, monkeypatch):
    size, path = sized
    task, preprocess = find_task("detection"), preprocess_of("detection")
    frame = preprocess.frame(*SIZES[size])
    output, (y, x) = centres(frame)
    drawn = []
    monkeypatch.setattr(
        run, "drawing_of", lambda boxes: (lambda *given: drawn.append(given[1]) or b"png", "boxes")
    )
    ((_, row),) = BundleRun(
        task, CLASSES, preprocess, lambda image: output, "fp32", [path], tmp_path / "drawn"
    )
    (box,) = row["boxes"]
    assert box["class"] == "right"
    grow = np.array(frame.photo[::-1]) / frame.seen[::-1]
    wanted = np.array([x - 0.25, y - 0.25, x + 1.25, y + 1.25]) * 4 * np.tile(grow, 2)
    wanted = np.clip(wanted, 0, np.tile(frame.photo[::-1], 2))  # and no further than the photo
    assert box["box"] == pytest.approx(wanted, abs=0.051)
    assert len(drawn[0]) == 1
    (tmp_path / "task.json").write_text(json.dumps(task.settings()))
    infer = sample_of("detection", tmp_path)
    monkeypatch.setattr(infer, "read", lambda manifest, name: (tmp_path / name).read_bytes())
    told = of_sample(infer, path, output, {"task": "detection"}, preprocess)
    assert told[:, :4] == pytest.approx(wanted[None], abs=1e-3)
    photo = Photo("a", path=path, boxes=np.array([[*wanted, 1]], np.float32))
    found = evaluate(
        dict.fromkeys(PAIR, lambda image: output), PAIR, [photo], preprocess, task, CLASSES
    )
    (validated,) = predict(Canned(output), [photo], preprocess, torch.device("cpu"), task)
    assert validated.nbytes == 8 * (1 + 4 * 3 + 4 * 100)  # a quarter of a list of these numbers
    assert found.predicted["student"][0].tolist() == validated.tolist()
    assert validated[0] == 0
    assert task.scores([validated], [0.0])["map50"] == 1


def test_the_padding_of_these_photos_has_boxes():
    """Else the test above could not fail."""
    task, preprocess = find_task("detection"), preprocess_of("detection")
    padded = [size for size in SIZES if SEEN[size] != SIDES]
    assert padded == ["small", "large", "wide", "odd"]
    for size in padded:
        frame = preprocess.frame(*SIZES[size])
        whole = preprocess.frame(*SIDES)
        assert len(task.answer(centres(frame)[0], whole)) > 1, size
