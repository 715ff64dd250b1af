"""What a plan reads of the data, and how many photos are in memory at once."""

import json
import os
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from kdcompile.config.spec import Data
from kdcompile.core import files
from kdcompile.core.files import Hasher
from kdcompile.data import check
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import load_splits, splits_rows
from kdcompile.distill.evaluate import predict
from kdcompile.gates.evaluate import evaluate
from kdcompile.tasks.task import find_task


def _data(folder, count):
    """So many images, a half of them to train on."""
    names = [f"{number:04d}.png" for number in range(count)]
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "one.png")
    content = (folder / "one.png").read_bytes()
    for number, name in enumerate(names):
        (folder / name).write_bytes(content + number.to_bytes(4, "big"))
    rows = [{"image": name, "points": [[1.0, 1.0]]} for name in names]
    (folder / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split, part in (("train", names[::2]), ("val", names[1::4]), ("test", names[3::4])):
        (folder / f"{split}.txt").write_text("\n".join(part))
    return Data(format="points-jsonl", root=folder)


@pytest.fixture
def counted(monkeypatch):
    """How often a file was asked for (`stat`) and read (`read`)."""
    found = {"stat": 0, "read": 0}
    stat, read = os.stat, files.file_sha256

    def counting(name, real):
        def call(*args, **options):
            found[name] += 1
            return real(*args, **options)

        return call

    monkeypatch.setattr(os, "stat", counting("stat", stat))
    monkeypatch.setattr(files, "file_sha256", counting("read", read))
    return found


@pytest.mark.parametrize("count", [40, 160])
def test_a_plan_reads_an_image_once_and_asks_for_it_a_few_times(tmp_path, counted, count):
    data, hasher = _data(tmp_path, count), Hasher(tmp_path / "hashes.json")
    counted.update(stat=0, read=0)
    first = splits_rows(data, tmp_path, hasher)
    assert sum(map(len, first.values())) == count
    assert counted["read"] == count
    assert counted["stat"] <= 4 * count + 20
    hasher.save()
    counted.update(stat=0, read=0)
    assert splits_rows(data, tmp_path, Hasher(tmp_path / "hashes.json")) == first
    assert counted["read"] == 0
    assert counted["stat"] <= 4 * count + 20


def test_splits_hold_no_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Photo, "pixels", pytest.fail)
    splits = load_splits(_data(tmp_path, 16), tmp_path)
    assert len(splits.train) == 8
    assert all(photo.array is None and photo.encoded is None for photo in splits.train)


class Alive:
    """Counts the images that were decoded and are still in memory."""

    def __init__(self, monkeypatch):
        self.now = self.most = 0
        self.pixels = Photo.pixels
        monkeypatch.setattr(Photo, "pixels", lambda photo, channels: self.decode(photo, channels))

    def decode(self, photo, channels):
        found = self.pixels(photo, channels).copy()
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(found, self.forget)
        return found

    def forget(self):
        self.now -= 1


@pytest.fixture
def photos(tmp_path):
    return load_splits(_data(tmp_path, 160), tmp_path).train


@pytest.fixture
def alive(monkeypatch):
    return Alive(monkeypatch)


PREPARE = Preprocess(3, (0.5,) * 3, (0.25,) * 3, (16, 16), (16, 16))


def test_predictions_hold_a_batch(photos, alive, monkeypatch):
    monkeypatch.setattr("kdcompile.distill.evaluate.BATCH", 4)
    network, task = torch.nn.Conv2d(3, 1, 1), find_task("counting")
    found = predict(network, photos, PREPARE, torch.device("cpu"), task)
    assert len(found) == 80
    assert alive.most <= 2  # what is prepared of it is held, a batch of four, and not the pixels


def test_verification_holds_one_photo(photos, alive):
    def run(image):
        return image[:, :1] / image.size

    evaluate({"a": run, "b": run}, ("a", "b"), photos, PREPARE, find_task("counting"))
    assert 1 <= alive.most <= 2


def test_looking_at_images_holds_one_a_thread(photos, alive, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    found = check._look({photo.sha256(): photo for photo in photos}, 3)
    assert len(found) == 80
    assert alive.most <= 4
