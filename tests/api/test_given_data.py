"""Data sets passed as objects: what is written of them is what was passed, or an error."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler, Subset, SubsetRandomSampler, TensorDataset

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.data.given import written
from kdcompile.data.pool import load_pool
from kdcompile.data.splits import load_splits

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 8, 6, 3), np.uint8)


def samples(*numbers, label=lambda number: number % 2):
    return [(PIXELS[number], label(number)) for number in numbers]


def given(**changes):
    return {"train": samples(0, 1, 2), "val": samples(3, 4), "test": samples(5)} | changes


def read(data, folder, kind="classification"):
    section, shape = written(data, kind, folder)
    return section, shape, load_splits(Data(**section), folder)


def test_images_and_labels_come_back(tmp_path):
    section, shape, splits = read(given(mean=[0.5] * 3, classes=["dark", "bright"]), tmp_path)
    assert (section["mean"], section["std"], shape) == ([0.5] * 3, [1.0] * 3, [3, 8, 6])
    assert splits.classes == ("dark", "bright")
    for split, numbers in (("train", (0, 1, 2)), ("val", (3, 4)), ("test", (5,))):
        found = getattr(splits, split)
        assert [photo.label for photo in found] == [number % 2 for number in numbers]
        assert all((f.pixels(3) == PIXELS[n]).all() for f, n in zip(found, numbers, strict=True))


FORMS = {
    "tensor": lambda pixels: torch.tensor(pixels).permute(2, 0, 1),
    "floats": lambda pixels: torch.tensor(pixels).permute(2, 0, 1) / 255,
    "channels first": lambda pixels: pixels.transpose(2, 0, 1),
    "Pillow": Image.fromarray,
}


@pytest.mark.parametrize("form", FORMS)
def test_equal_images_in_any_form_are_one_file(tmp_path, form):
    plain = written(given(), "classification", tmp_path)[0]
    other = [(FORMS[form](image), torch.tensor(label)) for image, label in samples(0, 1, 2)]
    assert written(given(train=other), "classification", tmp_path)[0] == plain
    assert len(list(tmp_path.iterdir())) == 3
    assert written(given(train=samples(1, 0, 2)), "classification", tmp_path)[0] != plain


def test_grey_images_have_one_channel(tmp_path):
    grey = {n: [(image[:, :, 0] / 255, 1.5) for image, _ in held] for n, held in given().items()}
    section, shape, splits = read(grey, tmp_path, "regression")
    assert (section["mean"], shape, splits.train[0].label) == ([0.0], [1, 8, 6], 1.5)
    assert (splits.train[0].pixels(1)[:, :, 0] == PIXELS[0][:, :, 0]).all()


def test_images_of_several_sizes(tmp_path):
    small = [(PIXELS[0][:4], 0), (PIXELS[1], 1)]
    _, shape, splits = read(given(train=small), tmp_path)
    assert shape == [3, 4, 6]
    assert [photo.pixels(3).shape for photo in splits.train] == [(4, 6, 3), (8, 6, 3)]
    assert (splits.train[0].pixels(3) == PIXELS[0][:4]).all()


def test_points_to_be_counted(tmp_path):
    def points(number):
        return np.array([[1.0, 2.5], [3.0, 4.0]][: number % 3])

    data = {
        "train": samples(0, 1, 2, label=points), "val": samples(4, label=points),
        "test": samples(5, label=points), "unlabelled": [PIXELS[7]],
    }  # fmt: skip
    section, shape, splits = read(data, tmp_path, "counting")
    assert (section["format"], shape) == ("points-jsonl", [3, 8, 6])
    assert [photo.count for photo in splits.train] == [0, 1, 2]
    assert splits.test[0].points.tolist() == [[1.0, 2.5], [3.0, 4.0]]
    assert (splits.train[1].pixels(3) == PIXELS[1]).all()
    assert written(data, "counting", tmp_path)[0] == section
    assert len(load_pool(Data(**section), tmp_path, splits).photos) == 1


def test_unlabelled_images(tmp_path):
    section, _, splits = read(given(unlabelled=[PIXELS[8], (PIXELS[9], 1)]), tmp_path)
    pool = load_pool(Data(**section), tmp_path, splits).photos
    assert [photo.label for photo in pool] == [None, None]


def test_data_sets_and_loaders_are_their_samples(tmp_path):
    plain = written(given(), "classification", tmp_path)[0]
    whole = TensorDataset(torch.tensor(PIXELS).permute(0, 3, 1, 2), torch.arange(12) % 2)
    for train in (Subset(whole, range(3)), DataLoader(Subset(whole, range(3)), 2, shuffle=True)):
        assert written(given(train=train), "classification", tmp_path)[0] == plain


class Noisy:
    """Another image each time."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return RNG.integers(0, 256, (8, 6, 3), np.uint8), 0


class Broken(Noisy):
    def __getitem__(self, number):
        raise OSError("no such file")


def chosen():
    held = samples(0, 1, 2)
    return DataLoader(held, sampler=SubsetRandomSampler([0, 1]))


@pytest.mark.parametrize(
    ("train", "code", "says"),
    [
        ([], "data-split", "no sample"),
        (iter(()), "data-loader", "has no length"),
        (chosen(), "data-loader", "sampler"),
        (DataLoader(samples(0), collate_fn=list), "data-loader", "collate_fn"),
        (DataLoader(samples(0, 1), batch_sampler=[[0]]), "data-loader", "sampler"),
        (
            DataLoader(samples(0, 1), sampler=RandomSampler([0, 1], num_samples=1)),
            "data-loader",
            "sampler",
        ),
        (Noisy(), "data-random", "another image each time"),
        (Broken(), "data-unread", "OSError: no such file"),
        ([PIXELS[0]], "sample-invalid", "not (image, label)"),
        ([(PIXELS[0], 0.5)], "sample-invalid", "a label is float64"),
        ([(PIXELS[0], [0, 1])], "sample-invalid", "shape [2]"),
        ([(PIXELS[0] / 100, 0)], "sample-invalid", "outside 0 to 1"),
        ([(PIXELS[0].astype(int), 0)], "sample-invalid", "of int64"),
        ([(PIXELS[0][:, :, :2], 0)], "sample-invalid", "shape [8, 6, 2]"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, train, code, says):
    with pytest.raises(KDError) as caught:
        written(given(train=train), "classification", tmp_path)
    assert caught.value.code == code
    assert says in caught.value.message
    assert "train" in caught.value.where


def test_a_missing_split_is_named(tmp_path):
    data = given()
    del data["val"]
    with pytest.raises(KDError, match="'val'") as caught:
        written(data, "classification", tmp_path)
    assert caught.value.code == "data-split"
    with pytest.raises(KDError, match="points have the shape") as caught:
        written(given(), "counting", tmp_path)
    assert caught.value.code == "sample-invalid"
