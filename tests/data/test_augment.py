"""Crops: a step is always the same, on any number of processes and wherever the photos lie."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kdcompile.config.spec import Distill
from kdcompile.data.augment import CropSampler
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.targets import DensityTargets, LabelTargets
from kdcompile.kernels._runtime import using

CPU = torch.device("cpu")
PREPROCESS = Preprocess(3, (0.5,) * 3, (0.25,) * 3, (32, 32), (512, 512))
SIZES = ((70, 90), (40, 33), (128, 64))


def _photos(sizes=SIZES):
    """White squares of 3 pixels on black, one point at each square's centre."""
    random = np.random.default_rng(0)
    photos = []
    for number, (height, width) in enumerate(sizes):
        pixels = np.zeros((height, width, 3), np.uint8)
        centres = [(x, y) for y in range(6, height - 3, 12) for x in range(6, width - 3, 12)]
        for x, y in centres:
            pixels[y - 1 : y + 2, x - 1 : x + 2] = random.integers(200, 255)
        points = np.float32(centres) + 0.5
        photos.append(Photo(f"p{number}", points, array=pixels, label=number))
    return photos


def _sampler(photos=None, seed=3, shard=(0, 1), limit_bytes=None, stride=4, **changes):
    photos = photos or _photos()
    options = Distill(**{"crop": 32, "batch": 5, **changes})
    targets = DensityTargets(photos, stride, 0.7, CPU)
    store = ImageStore(photos, 3, CPU, limit_bytes)
    return CropSampler(photos, PREPROCESS, options, targets, seed, CPU, shard, store)


def test_shapes_and_repeatability():
    first, again = _sampler().batch(7), _sampler().batch(7)
    assert first.images.shape == (5, 3, 32, 32)
    assert first.images.dtype == torch.float32
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert first.target.shape == (5, 1, 8, 8)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.target, again.target)
    assert not torch.equal(first.images, _sampler().batch(8).images)
    assert not torch.equal(first.images, _sampler(seed=4).batch(7).images)


@pytest.mark.parametrize("views", [0, 2])
def test_order_does_not_depend_on_the_steps_before(views):
    sampler = _sampler(views=views)
    sampler.batch(0)
    sampler.batch(9)
    assert torch.equal(sampler.batch(2).images, _sampler(views=views).batch(2).images)


def test_density_lies_where_the_square_is_drawn():
    pixels = np.zeros((52, 52, 3), np.uint8)  # larger than any window: no padding
    pixels[20:23, 30:33] = 255
    photo = Photo("one", np.float32([[31.5, 21.5]]), array=pixels)
    for side in (32, 35):  # the last one is no multiple of the stride
        sampler = _sampler([photo], crop=side, batch=8, colour=0.0, scale=(0.7, 1.4))
        compared = 0
        for step in range(6):
            batch = sampler.batch(step)
            light = (batch.images.mean(1) + 2).clamp_min(0) * (batch.images.mean(1) > -1.9)
            for image, density in zip(light, batch.target[:, 0], strict=True):
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
        # the mean is summed in another order
        assert torch.allclose(plain.images[i].flip(-1), flipped.images[i], atol=1e-5)
        assert torch.allclose(plain.target[i].flip(-1), flipped.target[i], atol=1e-5)


def test_every_photo_is_seen_once_an_epoch():
    sampler = _sampler(batch=2, views=2)
    drawn = [key for step in range(6) for key in sampler.keys(step)]
    for epoch in range(4):
        own = drawn[3 * epoch : 3 * epoch + 3]
        assert sorted(photo for photo, _ in own) == [0, 1, 2]
        assert {view for _, view in own} == {epoch % 2}


def test_views_recur_and_keys_name_them():
    """A crop is decided by its key, whatever the step, the batch and the crops beside it."""
    first, seen = _sampler(views=2, colour=0.3), {}
    for step in range(8):
        for sampler in (first, _sampler(views=2, colour=0.3, batch=3)):
            batch, keys = sampler.batch(step), sampler.keys(step)
            for key, image, target in zip(keys, batch.images, batch.target, strict=True):
                before = seen.setdefault(key, (image, target))
                assert torch.equal(before[0], image)
                assert torch.allclose(before[1], target, atol=1e-6)
    assert sorted(seen) == [(photo, view) for photo in range(3) for view in range(2)]
    images = [image for image, _ in seen.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])
    assert _sampler().keys(0) is None


@pytest.mark.parametrize("limit_bytes", [0, 10**6])
def test_recurring_crops_by_their_keys(limit_bytes):
    """Any number of them, in any order; targets can be had without the images."""
    sampler = _sampler(views=2, limit_bytes=limit_bytes)
    batch, keys = sampler.batch(3), sampler.keys(3)
    assert torch.equal(sampler.targets_of(3), batch.target)
    for chosen in ([4, 1], [2]):
        table = sampler.sent(sampler.draw_keys([keys[i] for i in chosen]))
        assert torch.equal(sampler.render(table).images, batch.images[chosen])


@pytest.mark.parametrize("views", [0, 2])
def test_processes_share_the_batch_of_one(views):
    for step in range(3):
        whole = _sampler(batch=6, views=views)
        parts = [_sampler(batch=2, views=views, shard=(rank, 3)) for rank in range(3)]
        images = torch.cat([part.batch(step).images for part in parts])
        assert torch.equal(images, whole.batch(step).images)
        if views:
            assert [key for part in parts for key in part.keys(step)] == whole.keys(step)


@pytest.mark.parametrize("colour", [0.0, 0.2])
def test_the_same_crops_from_host_memory_and_from_one_buffer(colour):
    host, resident = (_sampler(limit_bytes=limit, colour=colour) for limit in (0, 10**6))
    assert host.describe()["photos"] == "host memory"
    assert resident.describe()["photos"] == "cpu"
    assert resident.draw(0).shape == (5, 48)
    assert host.draw(0).shape[1] > 48
    for step in range(4):
        one, other = host.batch(step), resident.batch(step)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.target, other.target)


def test_a_table_for_a_gpu_has_one_shape(monkeypatch):
    """Of the widest window of any photo; the bytes that a table does not need change nothing."""
    sampler = _sampler()
    shapes = {sampler.draw(step).shape for step in range(9)}
    assert len(shapes) > 1
    sizes = sampler._store.sizes(np.arange(3))
    expected = [sampler.batch(step).images for step in range(9)]
    # 46 = 32 / 0.7: 46 x 46 pixels fit the first photo and the last one
    assert [tuple(size) for size in sizes] == list(SIZES)
    monkeypatch.setattr(sampler, "_room", lambda columns: sampler._store.most_pixels(46))
    assert {sampler.draw(step).shape for step in range(9)} == {(5, (64 + 46 * 46) * 3 // 4)}
    for step, images in enumerate(expected):
        assert torch.equal(sampler.batch(step).images, images)


@pytest.mark.parametrize("limit_bytes", [0, 10**6])
def test_the_kernel_renders_the_same(limit_bytes):
    sampler = _sampler(limit_bytes=limit_bytes, batch=3)
    expected = sampler.batch(1).images
    assert sampler.describe()["crops"] == "reference: tensors on the CPU"
    with using("triton"):
        found = sampler.batch(1).images
    assert sampler.describe()["crops"] == "triton"
    assert torch.allclose(found, expected, atol=1e-5)


def test_photos_as_small_as_the_crop():
    """Small photos of classes: crops of 32 from 32 x 32, zoomed in by up to a quarter."""
    random = np.random.default_rng(1)
    photos = [
        Photo(str(i), array=random.integers(1, 255, (32, 32, 3), dtype=np.uint8), label=i % 4)
        for i in range(9)
    ]
    options = Distill(crop=32, batch=9, scale=(1.0, 1.25), colour=0.0, views=3)
    targets = LabelTargets(photos, CPU, integer=True)
    sampler = CropSampler(photos, PREPROCESS, options, targets, 0, CPU)
    batch = sampler.batch(0)
    assert [photo % 4 for photo, _ in sampler.keys(0)] == batch.target.tolist()
    assert float(batch.images.min()) > -2.0  # black, which no photo has
    options = Distill(crop=32, batch=9, scale=(1.0, 1.0), colour=0.0, flip=False, views=1)
    sampler = CropSampler(photos, PREPROCESS, options, targets, 0, CPU)
    for (photo, _), image in zip(sampler.keys(4), sampler.batch(4).images, strict=True):
        whole = PREPROCESS(photos[photo].array)[0]
        assert torch.allclose(image, torch.from_numpy(whole), atol=1e-6)


def test_padding_is_the_mean_colour_and_no_part_of_the_contrast():
    photo = Photo("grey", array=np.full((40, 33, 3), 200, np.uint8))
    images = _sampler([photo], crop=64, batch=8, scale=(1.0, 1.0), flip=False).batch(0).images
    assert torch.equal(images[..., 40:, :], torch.zeros_like(images[..., 40:, :]))
    assert torch.equal(images[..., 33:], torch.zeros_like(images[..., 33:]))
    shown = images[..., :40, :33].flatten(1) * 0.25 + 0.5
    assert torch.allclose(shown, shown[:, :1].expand_as(shown), atol=1e-5)
    assert len(set(shown[:, 0].tolist())) == 8  # each crop's own brightness
    assert float((shown / (200 / 255) - 1).abs().max()) <= 0.2 + 1e-5


def test_what_of_a_map_is_padding():
    """Of a white photo each cell's brightness, as the padding is the mean: grey."""
    photo = Photo("white", array=np.full((40, 33, 3), 255, np.uint8))
    batch = _sampler([photo], crop=64, batch=8, scale=(1.0, 1.0), colour=0.0).batch(0)
    shown = (batch.images[:, :1] * 0.25 + 0.5 - 0.5) / 0.5  # 1 in the photo, 0 in the padding
    cells = torch.nn.functional.avg_pool2d(shown, 4)
    assert torch.allclose(batch.inside, cells, atol=1e-5)
    assert batch.inside.sum((1, 2, 3)).tolist() == pytest.approx([40 * 33 / 16] * 8)
    assert {float(inside[0, 0, 0]) for inside in batch.inside} == {0.0, 1.0}  # of flipped crops too


def test_nothing_is_padding_where_the_photo_fills_the_crop_and_labels_have_no_map():
    assert (_sampler(crop=32, scale=(1.0, 1.0)).batch(0).inside == 1).all()
    photos = _photos()
    targets, options = LabelTargets(photos, CPU, integer=True), Distill(crop=32, batch=5)
    assert CropSampler(photos, PREPROCESS, options, targets, 0, CPU).batch(0).inside is None


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_type_of_the_images(kind):
    sampler = _sampler()
    expected = sampler.batch(0).images
    sampler.dtype = kind
    found = sampler.batch(0).images
    assert found.dtype == kind
    assert torch.allclose(found.float(), expected, atol=2e-2)


def test_augmentation_names_what_decides_a_crop():
    plain = _sampler(views=2)
    assert plain.augmentation == _sampler(views=2, limit_bytes=10**6, batch=3).augmentation
    changes = [{"crop": 40}, {"scale": (0.8, 1.4)}, {"flip": False}, {"colour": 0.1}, {"views": 3}]
    changes += [{"seed": 4}, {"photos": _photos(SIZES[:2])}]
    others = [_sampler(**{"views": 2, **change}) for change in changes]
    others.append(_sampler(views=2))
    others[-1].dtype = torch.bfloat16
    other = replace(PREPROCESS, mean=(0.4,) * 3)
    targets = DensityTargets(_photos(), 4, 0.7, CPU)
    options = Distill(crop=32, batch=5, views=2)
    others.append(CropSampler(_photos(), other, options, targets, 3, CPU))
    found = {sampler.augmentation for sampler in others}
    assert len(found) == len(others)
    assert plain.augmentation not in found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("limit_bytes", [0, None])
def test_a_captured_batch_is_the_batch_of_its_table(limit_bytes):
    """One graph, replayed on the tables of other steps, without waiting for the device."""
    photos, device = _photos(), torch.device("cuda")
    targets, store = (
        DensityTargets(photos, 4, 0.7, device),
        ImageStore(photos, 3, device, limit_bytes),
    )
    options = Distill(crop=32, batch=5)
    sampler = CropSampler(photos, PREPROCESS, options, targets, 3, device, store=store)
    expected = [sampler.batch(step) for step in range(4)]
    assert expected[0].images.is_contiguous(memory_format=torch.channels_last)
    table = sampler.draw(0).to(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = sampler.render(table)
    for step, batch in enumerate(expected):
        torch.cuda.set_sync_debug_mode("error")
        try:
            table.copy_(sampler.draw(step), non_blocking=True)
            graph.replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(captured.images, batch.images)
        assert torch.allclose(captured.target, batch.target, atol=1e-6)
        alone = _sampler().batch(step)
        assert torch.allclose(captured.images.cpu(), alone.images, atol=1e-4)
        assert torch.allclose(captured.target.cpu(), alone.target, atol=1e-5)
