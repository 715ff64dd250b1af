"""Odd image files: what they are read as, here and by the script in a bundle."""

import importlib.util
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import kdcompile.bundle
from kdcompile.core.errors import KDError
from kdcompile.data.photo import decoded, read_pixels
from kdcompile.data.preprocess import Preprocess

INFER = Path(kdcompile.bundle.__file__).parent / "templates" / "infer.py"
BY_ORIENTATION = {  # as the EXIF standard has it: what turns the stored rows upright
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


def _colours(height=5, width=8):
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


def _png_of_16_bits(path, values):
    """Write [H, W, C] of 16 bits, which Pillow writes in grey alone."""
    height, width, channels = values.shape
    kind = {1: 0, 3: 2}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in parts
        )
    )


@pytest.mark.parametrize("orientation", BY_ORIENTATION)
def test_a_turned_photo_is_read_upright(tmp_path, orientation):
    stored, exif = _colours(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    upright = BY_ORIENTATION[orientation](stored)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png", 3), upright)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_of_16_bits_keeps_its_upper_8(tmp_path, suffix):
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    assert read_pixels(tmp_path / f"a{suffix}", 1)[..., 0].tolist() == [[0, 0, 1, 128, 255]]
    assert read_pixels(tmp_path / f"a{suffix}", 3)[0, 3].tolist() == [128, 128, 128]


def test_colours_of_16_bits_keep_their_upper_8(tmp_path):
    values = (_colours().astype(np.uint16) << 8) + 77
    _png_of_16_bits(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.png", 3), values >> 8)


def test_cmyk_becomes_rgb(tmp_path):
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[..., 0], inks[4:, :, 3] = 255, 255  # cyan, and black below
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tif")
    found = read_pixels(tmp_path / "a.tif", 3)
    assert found[0, 0].tolist() == [0, 255, 255]
    assert found[7, 7].tolist() == [0, 0, 0]


def test_images_one_pixel_wide_are_read(tmp_path):
    Image.fromarray(_colours(7, 1)).save(tmp_path / "a.png")
    found = read_pixels(tmp_path / "a.png", 3)
    assert found.shape == (7, 1, 3)
    prepare = Preprocess(3, (0.5,) * 3, (0.5,) * 3, (16, 16), (16, 16))
    assert prepare(found).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("cut", [0, 1, 10, 60, 90])
def test_part_of_a_file_is_no_image(cut):
    stream = io.BytesIO()
    Image.fromarray(_colours(30, 30)).save(stream, format="JPEG")
    with pytest.raises(KDError) as error:
        decoded(io.BytesIO(stream.getvalue()[: len(stream.getvalue()) * cut // 100]), 3, "a.jpg")
    assert error.value.code == "image-unreadable"


def test_no_bytes_end_in_a_traceback():
    random, whole = np.random.default_rng(1), io.BytesIO()
    Image.fromarray(_colours(9, 9)).save(whole, format="PNG")
    for _ in range(300):
        spoilt = bytearray(whole.getvalue())
        for place in random.integers(0, len(spoilt), 4):
            spoilt[place] = random.integers(256)
        try:
            decoded(io.BytesIO(bytes(spoilt)), 3, "a.png")
        except KDError as error:
            assert error.code.startswith("image-")  # noqa: PT017


def _infer():
    spec = importlib.util.spec_from_file_location("_infer_of_a_bundle", INFER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_of_a_bundle_reads_odd_files_alike(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_colours()).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(_colours()[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    Image.fromarray(_colours()).convert("CMYK").save(tmp_path / "inks.tif")
    infer = _infer()
    for channels in (1, 3):
        prepare = Preprocess(channels, (0.4,) * channels, (0.3,) * channels, (8, 8), (8, 8))
        for path in tmp_path.iterdir():
            expected = prepare(read_pixels(path, channels))
            found = infer.padded(infer.prepare(str(path), prepare.to_json()), prepare.to_json())
            np.testing.assert_array_equal(found, expected)
