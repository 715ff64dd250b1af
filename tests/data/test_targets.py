"""Targets: density of exactly the points that a crop shows, and labels of its photo."""

import numpy as np
import pytest
import torch

from kdcompile.config.spec import Distill
from kdcompile.core.errors import KDError
from kdcompile.data.augment import CropSampler
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.targets import DensityTargets, Extra, LabelTargets, PointTargets, flipped_of
from kdcompile.kernels.crop_augment import Column

CPU = torch.device("cpu")
GREY = Preprocess(1, (0.5,), (0.25,), (32, 32), (512, 512))


def _photo(points, name="p", size=(60, 80)):
    return Photo(name, np.float32(points).reshape(-1, 2), array=np.zeros((*size, 1), np.uint8))


def _crowd():
    random = np.random.default_rng(0)
    return [_photo(random.random((n, 2)) * [80, 60], str(n)) for n in (30, 0, 7)]


def _sampler(photos, **options):
    targets = DensityTargets(photos, 4, 1.0, CPU)
    return CropSampler(photos, GREY, Distill(crop=32, **options), targets, 0, CPU)


@pytest.mark.parametrize("side", [32, 35])
def test_mass_is_the_points_within_the_window(side):
    """Counted from the photo by numpy; photos without points and with many share a batch."""
    photos, total = _crowd(), 0
    targets = DensityTargets(photos, 4, 1.0, CPU)
    options = Distill(crop=side, batch=6, scale=(0.7, 1.4))
    sampler = CropSampler(photos, GREY, options, targets, 0, CPU)
    for step in range(6):
        table = sampler.draw(step)
        masses = targets(table, side).double().flatten(1).sum(1)
        for row, mass in zip(table.tolist(), masses.tolist(), strict=True):
            corner = np.array([row[Extra.LEFT], row[Extra.TOP]])
            far = corner + np.array([row[Column.WINDOW_W], row[Column.WINDOW_H]])
            points = photos[int(row[Extra.PHOTO])].points
            expected = ((points >= corner) & (points < far)).all(1).sum()
            assert mass == pytest.approx(expected, abs=1e-4)
            total += expected
    assert total > 50


def test_points_keep_their_order_and_lie_on_what_they_mark():
    """A bright pixel at each point is where the crop shows it, whatever the zoom and the mirror."""
    random, photos = np.random.default_rng(1), []
    for count in (3, 1, 0):
        places = random.integers(8, [72, 52], (count, 2))
        photo = _photo(places + 0.5, str(count))
        for n, (x, y) in enumerate(places):
            photo.array[y - 1 : y + 2, x - 1 : x + 2] = 100 + 50 * n
        photos.append(photo)
    targets = PointTargets(photos, CPU)
    options = Distill(crop=32, batch=6, scale=(0.9, 1.6), colour=0.0)
    sampler = CropSampler(photos, GREY, options, targets, 0, CPU)
    seen, mirrored = 0, 0
    for step in range(16):
        table = sampler.draw(step)
        batch = sampler.render(table)
        mirrored += int(flipped_of(table).sum())
        assert batch.target.shape == (6, 3, 3)
        light = (batch.images * 0.25 + 0.5) * 255
        for photo, image, rows in zip(batch.photo, light, batch.target, strict=True):
            count = len(photos[int(photo)].points)
            assert not rows[count:, 2].any()
            for n, (x, y, shown) in enumerate(rows[:count].tolist()):
                if shown and 1 <= x < 31 and 1 <= y < 31:
                    patch = image[0, int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2]
                    assert float(patch.max()) == pytest.approx(100 + 50 * n, rel=0.15)
                    seen += 1
    assert seen > 10
    assert mirrored > 3


def test_a_point_on_the_far_border_is_kept():
    photo = _photo([[32, 32], [0, 0], [40, 3], [3, -1]], size=(32, 32))
    batch = _sampler([photo], batch=4, scale=(1.0, 1.0)).batch(0)
    assert batch.target.flatten(1).sum(1).tolist() == pytest.approx([4.0] * 4, abs=1e-5)


def test_no_points_at_all():
    target = _sampler([_photo([])], batch=3).batch(0).target
    assert target.shape == (3, 1, 8, 8)
    assert not target.any()


def test_labels():
    photos = [Photo(str(i), array=np.zeros((9, 9, 1), np.uint8), label=v)
              for i, v in enumerate((2.0, 0.0, 5.0))]  # fmt: skip
    table = torch.zeros(4, len(Column) + len(Extra))
    table[:, Extra.PHOTO] = torch.tensor([2.0, 0, 0, 1])
    classes = LabelTargets(photos, CPU, integer=True)(table, 8)
    assert classes.dtype == torch.int64
    assert classes.tolist() == [5, 2, 2, 0]
    values = LabelTargets(photos, CPU, integer=False)(table, 8)
    assert values.dtype == torch.float32
    assert values.tolist() == [[5.0], [2.0], [2.0], [0.0]]
    with pytest.raises(KDError, match="no label") as caught:
        LabelTargets([_photo([])], CPU, integer=True)
    assert caught.value.code == "label-missing"
