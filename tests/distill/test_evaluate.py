"""Predictions do not depend on how photos are batched."""

import numpy as np
import pytest
import torch
from torch import nn

from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.distill import evaluate
from kdcompile.tasks.task import find_task

PREPROCESS = Preprocess(1, (0.5,), (0.25,), (8, 8), (64, 64))


class Shapes(nn.Module):
    """A density network that remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.seen = []

    def forward(self, image):
        self.seen.append(tuple(image.shape))
        return self.norm(self.conv(image))


@pytest.fixture
def photos():
    rng = np.random.default_rng(0)
    sides = [(8, 8)] * 5 + [(16, 8)] + [(8, 8)] * 2
    return [
        Photo(str(n), array=rng.integers(0, 256, (*side, 1), np.uint8))
        for n, side in enumerate(sides)
    ]


def predict(model, photos):
    return evaluate.predict(model, photos, PREPROCESS, torch.device("cpu"), find_task("counting"))


def test_neighbours_of_equal_size_run_together(photos, monkeypatch):
    model = Shapes().train()
    together = predict(model, photos)
    assert [shape[0] for shape in model.seen] == [5, 1, 2]
    assert model.training
    monkeypatch.setattr(evaluate, "BATCH", 1)
    alone = predict(model, photos)
    assert together == pytest.approx(alone, rel=1e-5)
    assert len(together) == len(photos)


def test_large_photos_run_alone(photos, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH_PIXELS", 3 * 64)
    model = Shapes()
    predict(model, photos)
    assert model.seen == [(3, 1, 8, 8), (2, 1, 8, 8), (1, 1, 16, 8), (2, 1, 8, 8)]


def test_no_photo_gives_no_prediction():
    assert predict(Shapes(), []).shape == (0,)
