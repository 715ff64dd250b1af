"""Image files that must be refused, before anything is trained on the others."""

import struct
import zlib
from pathlib import Path

import numpy as np
from bad_inputs import BadInput, picture, project
from PIL import Image

DISTILL = ("distill",)
IMAGE = Path("data", "images", "train0.png")


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of so many black pixels, as far as it says."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height, 16) * (1 + 3 * min(width, 16))))
    parts = ((b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )


def _written(content: bytes):
    return lambda folder: (project(folder), (folder / IMAGE).write_bytes(content))


def _restored(folder: Path) -> None:
    """Replace the file."""
    Image.fromarray(picture(0)[0]).save(folder / IMAGE)


def _delisted(folder: Path) -> None:
    """Take its line out of the split."""
    listed = folder / "data" / "train.txt"
    listed.write_text(listed.read_text().replace("train0.png\n", ""))


def _truncated(folder: Path) -> None:
    project(folder)
    whole = (folder / IMAGE).read_bytes()
    (folder / IMAGE).write_bytes(whole[: len(whole) // 2])


def _float(folder: Path) -> None:
    project(folder)
    Image.fromarray(np.zeros((16, 16), np.float32)).save(folder / IMAGE, format="TIFF")


def _turned(folder: Path) -> None:
    """Points of a photo as its camera stored it: 40 pixels wide, and upright 16."""
    project(folder)
    rotate = Image.Exif()
    rotate[0x0112] = 6
    Image.new("RGB", (40, 16), "white").save(folder / IMAGE, format="PNG", exif=rotate)
    table = folder / "data" / "annotations.jsonl"
    _, *others = table.read_text().splitlines()
    first = '{"image": "images/train0.png", "points": [[39.0, 3.0]]}'
    table.write_text("\n".join([first, *others]))


def _upright(folder: Path) -> None:
    """Give x right and y down in pixels of the upright image."""
    table = folder / "data" / "annotations.jsonl"
    table.write_text(table.read_text().replace("[39.0, 3.0]", "[13.0, 39.0]"))


def _folder_for_an_image(folder: Path) -> None:
    project(folder)
    (folder / IMAGE).unlink()
    (folder / IMAGE).mkdir()


def _emptied(folder: Path) -> None:
    (folder / IMAGE).rmdir()
    _restored(folder)


CASES = [
    BadInput(
        "image-corrupt", _written(b"<html>404 not found</html>"), DISTILL, "image-unreadable",
        _restored, says=(str(IMAGE), "replace the file"),
    ),
    BadInput("image-empty", _written(b""), DISTILL, "image-unreadable", _delisted),
    BadInput("image-truncated", _truncated, DISTILL, "image-unreadable", _restored),
    BadInput(
        "image-of-one-pixel", _written(_png(1, 1)), DISTILL, "image-tiny", _restored,
        says=("single pixel",),
    ),
    BadInput(
        "image-that-would-fill-the-memory", _written(_png(30_000, 30_000)), DISTILL, "image-huge",
        _restored, says=("900000000", "89478485 pixels at most"),
    ),
    BadInput(
        "image-over-the-limit", _written(_png(10_000, 10_000)), DISTILL, "image-huge", _restored,
        says=("100000000",),
    ),
    BadInput(
        "image-with-a-text-that-would-fill-the-memory",
        _written(_png(16, 16, (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 27), 9)))),
        DISTILL, "image-unreadable", _restored,
    ),
    BadInput("image-of-floats", _float, DISTILL, "image-depth", _restored, says=("floats",)),
    BadInput(
        "points-of-a-turned-image", _turned, DISTILL, "annotation-outside", _upright,
        says=("1 of the 1 points of train0.png", "16 x 40 pixels", "[39, 3]", "upright"),
    ),
    BadInput(
        "folder-for-an-image", _folder_for_an_image, DISTILL, "image-missing", _emptied,
        says=("train0.png, which is not there",),
    ),
]  # fmt: skip
