"""Masks: what is read, and each thing that is wrong with its fix."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdcompile.core.errors import KDError
from kdcompile.data.masks import check_mask, mask_of, mask_sha256
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.splits import photos_digest

MASK = np.array([[0, 1, 255], [2, 2, 0]], np.uint8)


def _png(path: Path, mode: str = "P") -> Path:
    image = Image.fromarray(MASK)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    (image if mode in ("P", "L") else image.convert(mode)).save(path)
    return path


@pytest.mark.parametrize("mode", ["P", "L"])
def test_an_index_png_is_read_as_it_is(tmp_path: Path, mode: str) -> None:
    photo = Photo("a", mask=_png(tmp_path / "a.png", mode))
    assert (mask_of(photo) == MASK).all()
    assert (mask_of(Photo("a", mask=MASK)) == MASK).all()


def test_a_photo_without_a_mask_says_what_to_do() -> None:
    with pytest.raises(KDError, match="mask-missing") as info:
        mask_of(Photo("a"))
    assert 'format = "masks"' in info.value.fix


def test_colours_are_no_indices(tmp_path: Path) -> None:
    for name, mode in (("a.png", "RGB"), ("a.jpg", "L")):
        with pytest.raises(KDError, match="mask-colours") as info:
            mask_of(Photo("a", mask=_png(tmp_path / name, mode)))
        assert "index PNG" in info.value.fix
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(KDError, match="mask-unreadable"):
        mask_of(Photo("a", mask=tmp_path / "b.png"))
    with pytest.raises(KDError, match="mask-invalid"):
        mask_of(Photo("a", mask=MASK.astype(np.float32)))  # type: ignore[arg-type]


def test_size_and_indices_are_checked() -> None:
    check_mask(MASK, (2, 3), 3, "a")
    with pytest.raises(KDError, match="mask-size") as info:
        check_mask(MASK, (3, 2), 3, "a")
    assert "size of the upright photo" in info.value.fix
    with pytest.raises(KDError, match="index 2 in 2 pixels") as info:
        check_mask(MASK, (2, 3), 2, "a")
    assert "data.ignore_index" in info.value.fix


def test_annotations_are_in_the_digest_of_photos(tmp_path: Path) -> None:
    pixels = np.zeros((2, 3, 3), np.uint8)
    bare = Photo("a", array=pixels)
    masked = Photo("a", array=pixels, mask=MASK)
    boxed = Photo("a", array=pixels, boxes=np.ones((1, 5), np.float32))
    other = Photo("a", array=pixels, mask=MASK * 0)
    found = {photos_digest([photo]) for photo in (bare, masked, boxed, other)}
    assert len(found) == 4
    path = _png(tmp_path / "a.png")
    before = mask_sha256(Photo("a", mask=path))
    _png(path, "L")
    assert mask_sha256(Photo("a", mask=path)) != before


def test_the_frame_has_the_annotated_photo() -> None:
    photo = Photo("a", array=np.zeros((2, 3, 3), np.uint8), mask=MASK)
    frame = Preprocess(3, (0.0,) * 3, (1.0,) * 3, (2, 3), (2, 3)).view(photo)[1]
    assert frame.of is photo
    assert frame == Preprocess(3, (0.0,) * 3, (1.0,) * 3, (2, 3), (2, 3)).frame(2, 3)
