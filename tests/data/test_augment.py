"""Crops: their density is exactly their points, and a step is always the same."""

import numpy as np
import pytest
import torch

from kdcompile.data.augment import CropSampler
from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess
from kdcompile.spec import Distill

PREPROCESS = Preprocess(3, (0.5,) * 3, (0.25,) * 3, (32, 32), (512, 512))


def _photos(sizes=((70, 90), (40, 33), (128, 64))):
    """White squares of 3 pixels on black, one point at each square's centre."""
    random = np.random.default_rng(0)
    photos = []
    for number, (height, width) in enumerate(sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        centres = [(x, y) for y in range(6, height - 3, 12) for x in range(6, width - 3, 12)]
        for x, y in centres:
            pixels[y - 1 : y + 2, x - 1 : x + 2] = random.integers(200, 255)
        points = np.float32(centres) + 0.5
        photos.append(Photo(f"p{number}", points, array=pixels))
    return photos


def _sampler(**changes):
    options = Distill(**{"crop": 32, "batch": 5, "colour": 0.0, **changes})
    return CropSampler(_photos(), PREPROCESS, options, 4, 1.0, 3, torch.device("cpu"))


def test_shapes_and_repeatability():
    first, again = _sampler().batch(7), _sampler().batch(7)
    assert first.images.shape == (5, 3, 32, 32)
    assert first.density.shape == (5, 1, 8, 8)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.density, again.density)
    assert not torch.equal(first.images, _sampler().batch(8).images)


def test_order_does_not_depend_on_the_steps_before():
    sampler = _sampler()
    sampler.batch(0)
    sampler.batch(9)
    assert torch.equal(sampler.batch(2).images, _sampler().batch(2).images)


def test_mass_is_whole():
    for step in range(6):
        sums = _sampler(scale=(0.7, 1.4)).batch(step).density.double().flatten(1).sum(1)
        assert torch.allclose(sums, sums.round(), atol=1e-4)
        assert sums.sum() > 0


def test_density_lies_where_the_square_is_drawn():
    pixels = np.zeros((48, 48, 3), np.uint8)
    pixels[20:23, 30:33] = 255
    photo = Photo("one", np.float32([[31.5, 21.5]]), array=pixels)
    options = Distill(crop=32, batch=8, colour=0.0, scale=(0.7, 1.4))
    sampler = CropSampler([photo], PREPROCESS, options, 4, 0.7, 0, torch.device("cpu"))
    compared = 0
    for step in range(6):
        batch = sampler.batch(step)
        light = (batch.images.mean(1) + 2).clamp_min(0) * (batch.images.mean(1) > -1.9)
        for image, density in zip(light, batch.density[:, 0], strict=True):
            seen, drawn = _centroid(image) / 4, _centroid(density)
            if density.sum() > 0.5 and float(drawn.min()) > 1.5 and float(drawn.max()) < 6.5:
                assert float((seen - drawn).abs().max()) < 0.3
                compared += 1
    assert compared > 10


def _centroid(image):
    """Mean row and column of the mass, in pixels of the map, centres at n + 0.5."""
    rows, columns = torch.arange(image.shape[0]) + 0.5, torch.arange(image.shape[1]) + 0.5
    return torch.stack([(image.sum(1) * rows).sum(), (image.sum(0) * columns).sum()]) / image.sum()


def test_flip_moves_image_and_density_together():
    plain, flipped = _sampler(flip=False).batch(1), _sampler(flip=True).batch(1)
    moved = [i for i in range(5) if not torch.equal(plain.images[i], flipped.images[i])]
    assert moved
    for i in moved:
        assert torch.equal(plain.images[i].flip(-1), flipped.images[i])
        assert torch.equal(plain.density[i].flip(-1), flipped.density[i])


def test_every_photo_is_seen_once_an_epoch():
    sampler = _sampler(batch=3)
    seen = [sampler._index(n) for n in range(6)]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_a_point_on_the_far_border_is_kept():
    photo = Photo("edge", np.float32([[32, 32], [0, 0]]), array=np.zeros((32, 32, 3), np.uint8))
    options = Distill(crop=32, batch=1, scale=(1.0, 1.0), flip=False)
    sampler = CropSampler([photo], PREPROCESS, options, 4, 1.0, 0, torch.device("cpu"))
    assert float(sampler.batch(0).density.sum()) == pytest.approx(2.0, abs=1e-5)


def test_padding_is_the_mean_colour():
    options = Distill(crop=64, batch=1, scale=(1.0, 1.0), flip=False, colour=0.2)
    sampler = CropSampler(_photos(((40, 33),)), PREPROCESS, options, 4, 1.0, 0, torch.device("cpu"))
    image = sampler.batch(0).images
    assert torch.equal(image[..., 40:, :], torch.zeros_like(image[..., 40:, :]))
