"""Where decoded photos lie, and that each is decoded once."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdcompile.core.errors import KDError
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo

CPU = torch.device("cpu")
SIZES = ((5, 7), (4, 4), (9, 3))


def _photos(folder):
    """Three files and their pixels."""
    random, photos, arrays = np.random.default_rng(0), [], []
    for i, size in enumerate(SIZES):
        arrays.append(random.integers(0, 256, (*size, 3), dtype=np.uint8))
        Image.fromarray(arrays[-1]).save(folder / f"{i}.png")
        photos.append(Photo(str(i), path=folder / f"{i}.png"))
    return photos, arrays


def test_host_memory_is_filled_as_photos_are_drawn(tmp_path):
    photos, arrays = _photos(tmp_path)
    store = ImageStore(photos, 3, CPU)
    assert store.describe() == {
        "photos": "host memory", "decoded": 0, "bytes": 0, "limit_bytes": 0
    }  # fmt: skip
    assert store.sizes(np.array([2, 0, 2])).tolist() == [[9, 3], [5, 7], [9, 3]]
    assert store.bytes is None
    assert store.describe()["decoded"] == 2
    assert store.describe()["bytes"] == 3 * (35 + 27)
    np.testing.assert_array_equal(store.pixels(2), arrays[2])
    (tmp_path / "0.png").unlink()
    assert store.sizes(np.array([0])).tolist() == [[5, 7]]  # not decoded again
    assert store.most_pixels(8) == 35
    assert store.most_pixels(5) == 25


@pytest.mark.parametrize(("spare", "place"), [(0, "cpu"), (-1, "host memory")])
def test_one_buffer_where_the_bound_allows(tmp_path, spare, place):
    photos, arrays = _photos(tmp_path)
    total = sum(array.size for array in arrays)
    store = ImageStore(photos, 3, CPU, limit_bytes=total + spare)
    assert store.describe() == {
        "photos": place, "decoded": 3, "bytes": total, "limit_bytes": total + spare
    }  # fmt: skip
    assert store.sizes(np.arange(3)).tolist() == [list(size) for size in SIZES]
    if place == "cpu":
        starts = store.starts(np.arange(3))
        assert starts.tolist() == [0, 35, 51]
        for start, array in zip(starts, arrays, strict=True):
            own = store.bytes[3 * start : 3 * start + array.size]
            assert own.tolist() == array.flatten().tolist()
    else:
        assert store.bytes is None
        np.testing.assert_array_equal(store.pixels(1), arrays[1])


def test_arrays_that_may_not_be_written():
    array = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    array.flags.writeable = False
    store = ImageStore([Photo("a", array=array)], 3, CPU, limit_bytes=100)
    assert store.bytes.tolist() == list(range(12))


def test_a_photo_that_cannot_be_decoded(tmp_path):
    photos, _ = _photos(tmp_path)
    (tmp_path / "1.png").write_bytes(b"no image")
    store = ImageStore(photos, 3, CPU)
    with pytest.raises(KDError) as caught:
        store.sizes(np.arange(3))
    assert caught.value.code == "image-unreadable"
