"""Format `yolo`: the layout of the YOLO tools, whose boxes are to be found.

    data.yaml                names of the classes, and the images of each split
    train/images/a.jpg       or images/train/a.jpg
    train/labels/a.txt       a line a box: class, centre x, centre y, width, height, of 0 to 1

`data.train`, `val` and `test` are keys of data.yaml, whose value is a folder of images, a list of
paths, or several of these. An image without a file of labels shows nothing.
"""

from os.path import isfile
from pathlib import Path

import numpy as np
from PIL import Image

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError, nearest
from kdcompile.core.plugins import register
from kdcompile.data.boxes import checked_boxes, clipped_boxes
from kdcompile.data.entry import SUFFIXES, Entry, inside, read_list, require_image
from kdcompile.data.formats import Files
from kdcompile.data.yolo_file import YoloFile, read_yolo

TURNED = range(5, 9)  # EXIF orientations that exchange width and height
ORIENTATION = 0x0112


def entries(data: Data) -> dict[str, list[Entry]]:
    """The images of each split with their boxes, by path.

    Raises:
        KDError: those of `read_yolo`, `checked_boxes`, `clipped_boxes`; `split-missing`,
            `image-missing`, `image-unreadable`, `annotations-syntax`, `labels-missing`.
    """
    file = read_yolo(inside(data.root, data.annotations))
    return {split: _split(data, file, split) for split in ("train", "val", "test")}


def classes(data: Data) -> tuple[str, ...]:
    """The names of the classes by index."""
    return read_yolo(inside(data.root, data.annotations)).names


def _split(data: Data, file: YoloFile, split: str) -> list[Entry]:
    key = getattr(data, split)
    given = file.values.get(key, [])
    if not given:
        raise KDError(
            "split-missing",
            f"{data.annotations} has no {key!r}{nearest(key, file.values)}",
            where=f"{data.root / data.annotations} [data] {split}",
            fix=f"write {key}: and the folder of its images, or set data.{split} to one of its "
            "keys; no image may be in two splits",
        )
    images = [image for one in given for image in _images(data, file, one, split)]
    found = [_entry(data, file, image) for image in images]
    if all(entry.annotation is None for entry in found):
        raise KDError(
            "labels-missing",
            f"no image of the {split} split has a file of labels",
            where=str(_labels(images[0])) if images else f"{data.root} [data] {split}",
            fix="write them into a folder labels next to the folder images, a .txt an image",
        )
    return found


def _images(data: Data, file: YoloFile, given: str, split: str) -> list[Path]:
    """Of a folder or of a list, under the root or the `path` of the file."""
    base = Path(*file.values.get("path", ["."])[:1])
    # a known exporter writes ../train/images for train/images
    names = [base / given, Path(given), Path(given.removeprefix("../"))]
    near = [data.root / name for name in names]
    place = next((one for one in near if one.is_dir() or isfile(one)), None)
    if place is None:
        raise KDError(
            "split-missing",
            f"there is no {given!r} with the {split} split",
            where=str(data.root / data.annotations),
            fix="correct the path there: it is relative to data.root",
        )
    place = inside(data.root, str(place))
    if place.is_dir():
        every = sorted(place.rglob("*"))
        return [path for path in every if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [require_image(inside(data.root, line), split) for line in read_list(place)]


def _labels(image: Path) -> Path:
    """The file of an image's labels."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        parts[last] = "labels"
    return Path(*parts).with_suffix(".txt")


def _entry(data: Data, file: YoloFile, image: Path) -> Entry:
    name, labels = image.relative_to(data.root).as_posix(), _labels(image)
    if not isfile(labels):
        return Entry(name, image, None, None, boxes=[])
    rows = [_row(line, labels, number) for number, line in enumerate(read_list(labels), 1)]
    height, width = _size(image)
    scale = np.array([width, height, width, height])
    table = np.array(rows, np.float64).reshape(-1, 5)
    centre, size = table[:, 1:3] * scale[:2], table[:, 3:5] * scale[2:]
    corners = np.concatenate([centre - size / 2, centre + size / 2, table[:, :1]], axis=1)
    boxes = checked_boxes(corners, name, str(labels), len(file.names))
    if (table[:, 0] < 0).any():  # what stands for a crowd elsewhere
        raise _syntax(labels, "a class below 0")
    boxes = clipped_boxes(boxes, (height, width), name, str(labels))
    return Entry(name, image, None, labels, boxes=boxes.tolist())


def _row(line: str, labels: Path, number: int) -> list[float]:
    parts = line.split()
    try:
        values = [float(part) for part in parts]
    except ValueError:
        values = []
    if len(values) != 5:
        held = "a polygon" if len(values) > 6 else f"{line!r:.40}"
        raise _syntax(labels, f"{held} in line {number}")
    return values


def _syntax(labels: Path, problem: str) -> KDError:
    return KDError(
        "annotations-syntax",
        f"the labels have {problem}",
        where=str(labels),
        fix="write a line a box: class, centre x, centre y, width, height, as shares of the image",
    )


def _size(path: Path) -> tuple[int, int]:
    """Height and width of the upright image, by its header.

    Raises:
        KDError: `image-unreadable`.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except Exception as error:  # decoders raise nearly anything on arbitrary bytes
        raise KDError(
            "image-unreadable",
            f"the image cannot be decoded: {error}",
            where=str(path),
            fix="replace the file, or take it out of its split",
        ) from error
    return (width, height) if turned else (height, width)


DEFAULTS = {"annotations": "data.yaml", "train": "train", "val": "val", "test": "test"}
FORMAT = register("formats", "yolo", __name__)(Files(entries, defaults=DEFAULTS, classes=classes))
