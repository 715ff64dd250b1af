"""Format `coco`: a COCO file a split, with boxes to be found or a class for each pixel.

`data.labels` says which; what is drawn of polygons and run lengths is in docs/data.md.

A split is `FILE.json`, or `FILE.json:FOLDER` where its images lie in another folder than the file,
the root, or `images` under the root. What a class is called and which index it has is the same in
all splits.
"""

from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.plugins import register
from kdcompile.data.boxes import checked_boxes, clipped_boxes
from kdcompile.data.coco_file import CocoImage, Row, read_coco
from kdcompile.data.entry import Entry, inside
from kdcompile.data.formats import Files
from kdcompile.data.regions import IGNORED, Regions, read_region

SPLITS = ("train", "val", "test")
REST = "background"  # the class of pixels that no annotation covers


def entries(data: Data) -> dict[str, list[Entry]]:
    """The images of each split with their boxes or masks, in the file's order.

    Raises:
        KDError: those of `read_coco`, `checked_boxes`, `clipped_boxes` and `read_region`;
            `image-missing`, `classes-differ`, `path-outside` or `categories-many`.
    """
    found: dict[str, list[Entry]] = {}
    names: tuple[str, ...] | None = None
    for split in SPLITS:
        path, folder = _place(data, split)
        file = read_coco(path)
        names = file.classes if names is None else names
        _refuse_other_classes(data, split, names, file.classes)
        places = [(image, _image(data, split, path, folder, image)) for image in file.images]
        if data.labels == "boxes":
            found[split] = [_boxes(path, *place) for place in places]
            continue
        number = {name: index for index, name in enumerate(_classes(data, names))}
        found[split] = [
            _mask(data, path, *place, [number[name] for name in names], number.get(REST, IGNORED))
            for place in places
        ]
    return found


def classes(data: Data) -> tuple[str, ...]:
    """The names of the classes by index."""
    return _classes(data, read_coco(_place(data, "train")[0]).classes)


def _classes(data: Data, categories: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the classes by index: of masks with one for the rest, or as the spec has them.

    Raises:
        KDError: `classes-differ` or `categories-many`.
    """
    if data.labels == "boxes":
        return categories
    named = tuple(data.classes) or tuple(dict.fromkeys((REST, *categories)))
    wrong = sorted((set(categories) ^ set(named)) - {REST})
    if wrong or len(set(named)) < len(named):
        raise KDError(
            "classes-differ",
            f"data.classes is {', '.join(named)}, the categories are {', '.join(categories)}",
            where=f"{data.root} [data] classes",
            fix=f"name each category once, by index, and {REST} where pixels that no annotation "
            "covers are a class; or leave data.classes out",
        )
    if len(named) > IGNORED:
        raise KDError(
            "categories-many",
            f"there are {len(named)} classes, of which a mask has indices for {IGNORED}",
            where=f"{data.root} [data] train",
            fix=f"write {IGNORED - 1} categories at most into the files",
        )
    return named


def _place(data: Data, split: str) -> tuple[Path, str]:
    """The file of a split, and the folder of its images as the spec names it."""
    file, _, folder = getattr(data, split).partition(":")
    return inside(data.root, file), folder


def _image(data: Data, split: str, path: Path, folder: str, image: CocoImage) -> Path:
    """The file of an image.

    Raises:
        KDError: `image-missing` or `path-outside`.
    """
    near = [inside(data.root, folder)] if folder else [path.parent, data.root, data.root / "images"]
    places = [inside(place, image.name) for place in near]
    own = next((place for place in places if isfile(place)), None)
    if own is None:
        raise KDError(
            "image-missing",
            f"{path.name} names {image.name}, which is not there",
            where=f"{places[0]} [data] {split}",
            fix=f"put it there, or name the folder of the images: data.{split} = "
            f'"{path.name}:FOLDER", under data.root',
        )
    return own


def _boxes(path: Path, image: CocoImage, own: Path) -> Entry:
    rows = [_box(row, kind, image.name, str(path)) for row, kind in
            zip(image.rows, image.kinds, strict=True)]  # fmt: skip
    boxes = checked_boxes(rows, image.name, str(path), None)
    boxes = clipped_boxes(boxes, image.size, image.name, str(path))
    return Entry(image.name, own, None, path, boxes=boxes.tolist())


def _mask(
    data: Data, path: Path, image: CocoImage, own: Path, number: Sequence[int], rest: int
) -> Entry:
    """With what each annotation covers, whose category `number` gives the index of its class."""
    regions = [
        read_region(row, number[kind], image.size, image.name, str(path))
        for row, kind in zip(image.rows, image.kinds, strict=True)
    ]
    mask = Regions(image.size, regions, rest)
    return Entry(image.name, own, None, path, mask=mask, ignored=data.ignore_index)


def _box(row: Row, kind: int, name: str, where: str) -> list[float]:
    """x0, y0, x1, y1 and the class's index, of a crowd -1 - index."""
    box: Any = row.get("bbox")
    numbers = isinstance(box, list) and all(type(value) in (int, float) for value in box)
    if not numbers or len(box) != 4:
        raise KDError(
            "annotation-invalid",
            f"annotation {row['id']} of {name} has a bbox of {box!r:.60}",
            where=where,
            fix='give "bbox": [x, y, width, height] in pixels',
        )
    x, y, width, height = box
    return [x, y, x + width, y + height, -1 - kind if row.get("iscrowd") else kind]


def _refuse_other_classes(
    data: Data, split: str, train: tuple[str, ...], other: tuple[str, ...]
) -> None:
    if train != other:
        raise KDError(
            "classes-differ",
            f"the categories of the {split} split are {', '.join(other)}, those of the training "
            f"split {', '.join(train)}",
            where=f"{data.root} [data] {split}",
            fix="write the same categories, with the same ids, into the files of all splits",
        )


DEFAULTS = {split: f"{split}.json" for split in SPLITS}
FORMAT = register("formats", "coco", __name__)(Files(entries, defaults=DEFAULTS, classes=classes))
