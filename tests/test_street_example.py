"""The example on street scenes: its network, its training, and its teacher where photos are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kdcompile.config.load import load_spec
from kdcompile.data.splits import load_splits
from kdcompile.examples.bfloat_training import Training
from kdcompile.examples.street import train_teacher
from kdcompile.examples.street.network import CLASSES, build
from kdcompile.models.factory import load_teacher

FOLDER = Path(train_teacher.__file__).parent
PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "camvid"


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    """Two photos of a split, bright above (class 0) and dark below (3); a corner is void."""
    root = tmp_path_factory.mktemp("street")
    for name in ("images", "labels"):
        (root / name).mkdir()
    for name in ("a", "b"):
        mask = np.zeros((96, 128), np.uint8)
        mask[48:] = 3
        mask[:8, :8] = train_teacher.VOID
        pixels = np.where(mask[..., None] == 3, 40, 220).repeat(3, 2).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{name}.jpg")
        Image.fromarray(mask).save(root / "labels" / f"{name}.png")
    (root / "train.txt").write_text("a\nb\n")
    return train_teacher.read_split(root, "train")


def test_the_teacher_is_small_and_suits_its_spec():
    spec = load_spec(FOLDER / "kdcompile.toml")
    assert spec.teacher.weights.stat().st_size < 8e6
    halves = [t for t in load_file(spec.teacher.weights).values() if t.is_floating_point()]
    assert {t.dtype for t in halves} == {torch.float16}
    assert len(spec.data.classes) == CLASSES
    assert spec.data.ignore_index == train_teacher.VOID
    assert load_teacher(spec)(torch.zeros(1, 3, 64, 96)).shape == (1, CLASSES, 16, 24)


def test_a_crop_moves_its_mask(street, monkeypatch):
    monkeypatch.setattr(train_teacher, "SIDE", 64)
    for seed in range(8):
        pixels, classes = train_teacher.random_crop(street[0], np.random.default_rng(seed))
        assert pixels.shape == (3, 64, 64)
        dark = pixels.mean(0) < 130
        asked = classes != train_teacher.VOID
        assert ((classes == 3) == dark)[asked].float().mean() > 0.95


def test_void_costs_nothing(street):
    weights = train_teacher.class_weights(street)
    assert weights[1] > weights[0]  # a rare class weighs more
    classes = street[0].classes[None].long()
    right = torch.nn.functional.one_hot(classes.clamp(max=CLASSES - 1), CLASSES)
    logits = (40.0 * right).permute(0, 3, 1, 2).float()
    good = train_teacher.loss_of(logits, classes, weights)
    logits[:, :, :8, :8] = 40.0 * torch.randn(CLASSES, 8, 8)
    assert train_teacher.loss_of(logits, classes, weights) == pytest.approx(float(good), abs=1e-6)
    wrong = train_teacher.loss_of(logits.roll(1, 1), classes, weights)
    assert wrong > 10


def test_the_score_is_the_mean_over_classes(street):
    class Bright(torch.nn.Module):
        def forward(self, image):
            low = torch.nn.functional.avg_pool2d(image.mean(1, keepdim=True), 4)
            logits = torch.full((1, CLASSES, *low.shape[-2:]), -9.0)
            logits[:, 0], logits[:, 3] = low[:, 0], -low[:, 0]
            return logits

    counts = train_teacher.confusion(Bright(), street, quick=False)
    assert counts.sum() == 2 * (96 * 128 - 64)
    assert counts[0, 0] + counts[3, 3] > 0.97 * counts.sum()
    value, told = train_teacher.judge(street, Bright(), quick=False)
    assert value == pytest.approx(2 / CLASSES, rel=0.05)  # nine classes are nowhere
    assert told.startswith("mIoU 0.1")


def test_a_few_steps_learn(street, monkeypatch, tmp_path):
    monkeypatch.setattr(train_teacher, "SIDE", 64)
    monkeypatch.setattr(train_teacher, "BATCH", 2)
    torch.manual_seed(0)
    training = Training(build(), 6, rate=2e-3)
    weights = train_teacher.class_weights(street)
    losses = [
        training.take(*train_teacher.batch(street, weights, step)) for step in range(training.steps)
    ]
    assert losses[-1] < losses[0]
    network = training.write(tmp_path / "teacher.safetensors")
    halved = load_file(tmp_path / "teacher.safetensors")
    assert torch.equal(halved["output.weight"].float(), network.output.weight)


def test_the_teacher_knows_a_street():
    if not PHOTOS.is_dir():
        pytest.skip("../shared/data/camvid is not here")
    spec = load_spec(FOLDER / "kdcompile.toml", [f"data.root={PHOTOS}"])
    splits = load_splits(spec.data, FOLDER)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (367, 101, 233)
    some = train_teacher.read_split(PHOTOS, "val")[:2]
    counts = train_teacher.confusion(load_teacher(spec), some, quick=False)
    assert counts.trace() / counts.sum() > 0.7
