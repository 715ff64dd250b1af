"""The example on photos: its network, its splits, and its teacher where the photos are there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdcompile.config.load import load_spec
from kdcompile.data.splits import load_splits
from kdcompile.distill.evaluate import predict
from kdcompile.models.factory import build_model, load_teacher
from kdcompile.tasks.task import find_task, preprocess_of

FOLDER = Path(__file__).parents[1] / "examples" / "cifar10"
PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "cifar10"


@pytest.fixture(scope="module")
def spec():
    return load_spec(FOLDER / "kdcompile.toml", [f"data.root={PHOTOS}"])


@pytest.fixture(scope="module")
def splits(spec):
    if not PHOTOS.is_dir():
        pytest.skip("../shared/data/cifar10 is not here")
    return load_splits(spec.data, FOLDER)


def test_the_network_suits_the_spec(spec):
    network = build_model(spec.teacher.model, FOLDER).eval()
    for side in (32, 48):
        assert network(torch.zeros(2, 3, side, side)).shape == (2, 10)
    kinds = {type(module).__name__ for module in network.modules()}
    assert {"Conv2d", "BatchNorm2d", "Linear"} <= kinds


def test_the_weights_are_small_and_half_precision():
    path = FOLDER / "teacher.safetensors"
    assert path.stat().st_size < 1e6
    halves = [t for t in load_file(path).values() if t.is_floating_point()]
    assert {t.dtype for t in halves} == {torch.float16}


def test_the_splits_are_balanced_and_share_no_photo(splits):
    assert splits.classes[:2] == ("airplane", "automobile")
    assert (len(splits.train), len(splits.val), len(splits.test)) == (9000, 1000, 2000)
    for photos in (splits.train, splits.val, splits.test):
        counts = np.bincount([int(photo.label) for photo in photos], minlength=10)
        assert np.ptp(counts) == 0
    hashes = [photo.sha256() for photo in (*splits.train, *splits.val, *splits.test)]
    assert len(set(hashes)) == len(hashes)
    assert splits.train[0].pixels(3).shape == (32, 32, 3)


def test_the_teacher_knows_the_classes(spec, splits):
    teacher, task = load_teacher(spec), find_task("classification")
    some = splits.val[:300]
    preprocess = preprocess_of(spec)
    predicted = predict(teacher, some, preprocess, torch.device("cpu"), task)
    assert task.scores(predicted, [photo.label for photo in some])["top1"] > 0.6
