"""`kdcompile plan --label N`: the photos of the pool that are unlike all labelled ones."""

import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from bad_inputs import picture, project
from command_line import CommandLine
from documents import check_document
from PIL import Image

from kdcompile.config.load import load_spec
from kdcompile.data.photo import Photo
from kdcompile.distill.evaluate import BATCH
from kdcompile.passes.label import answers

LABEL = ("plan", "--set", "data.unlabelled=pool", "--label")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A project of photos with 6 to 19 points, and a pool: 8 like them, 60 and 150 points."""
    monkeypatch.chdir(tmp_path)
    project(tmp_path)
    pool = tmp_path / "data" / "pool"
    pool.mkdir()
    for name, (seed, points) in {"a": (1, 7), "dense": (3, 147), "mid": (2, 58)}.items():
        Image.fromarray(picture(seed, points)[0]).save(pool / f"{name}.png")
    return tmp_path


@pytest.fixture
def command(folder, monkeypatch, capsys):
    return CommandLine(monkeypatch, capsys)


def test_the_names_alone_are_printed_best_first(folder, command):
    shutil.copy(folder / "data" / "images" / "val0.png", folder / "data" / "pool" / "known.png")
    code, text = command(*LABEL, "2")
    assert code == 0
    assert command.out.split("\n") == ["pool/dense.png", "pool/mid.png", ""]
    assert "2 of 3 images, by the teacher and the student, given 4 labelled ones" in text
    assert "left out, as a split holds them: 1 (pool/known.png is val/val0.png)" in text


def test_as_one_document(command):
    code, _ = command(*LABEL, "9", "--json")
    assert code == 0
    found = json.loads(command.out)
    check_document("plan", found)
    assert [image["name"] for image in found["images"]] == [
        "pool/dense.png", "pool/mid.png", "pool/a.png",
    ]  # fmt: skip
    away = [image["distance"] for image in found["images"]]
    assert away == sorted(away, reverse=True)
    assert away[-1] > 0
    assert (found["pool"], found["labelled"], found["left_out"]) == (3, 4, [])
    assert found["networks"] == ["teacher", "student"]


def test_the_teacher_alone_before_a_student_is_trained(folder, command):
    shutil.rmtree(folder / ".kdcompile")
    command(*LABEL, "1", "--json")
    found = json.loads(command.out)
    assert found["networks"] == ["teacher"]
    assert [image["name"] for image in found["images"]] == ["pool/dense.png"]
    assert not list((folder / ".kdcompile").glob("distill/*"))  # nothing was trained for it


def test_what_is_labelled_is_not_proposed_again(folder, command):
    """A round: the photo that was chosen is annotated where it lies, and the next one differs."""
    command(*LABEL, "1")
    (name,) = command.out.split()
    data = folder / "data"
    row = {"image": name, "points": picture(3, 147)[1]}
    for file, line in (("annotations.jsonl", json.dumps(row)), ("train.txt", name)):
        with (data / file).open("a") as stream:
            stream.write(line + "\n")
    command(*LABEL, "1", "--json")
    found = json.loads(command.out)
    assert (found["images"][0]["name"], found["labelled"]) == ("pool/mid.png", 5)
    assert found["left_out"] == [{"name": "pool/dense.png", "twin": "train/pool/dense.png"}]


def test_photos_are_not_held(folder, monkeypatch):
    """Of many photos a batch is in memory, not more."""
    alive, most = weakref.WeakSet(), 0

    class Pixels(np.ndarray):
        """An array that can be watched and hashed."""

        __hash__ = object.__hash__

    def pixels(self, channels):
        nonlocal most
        made = np.zeros((16, 16, 3), np.uint8).view(Pixels)
        alive.add(made)
        most = max(most, len(alive))
        return made

    monkeypatch.setattr(Photo, "pixels", pixels)
    photos = [Photo(str(number)) for number in range(5 * BATCH)]
    spec = load_spec(folder / "kdcompile.toml")
    network = torch.nn.Conv2d(3, 1, 3)
    points = answers(spec, {"teacher": network}, photos)
    assert points.shape[0] == len(photos)
    assert most <= BATCH + 1
