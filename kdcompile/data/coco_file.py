"""A COCO file: its images with their annotations as they stand there, and its classes.

{"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
 "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "bbox": [x, y, width, height]}],
 "categories": [{"id": 3, "name": "cell"}]}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcompile.core.errors import KDError
from kdcompile.core.readers import read_json
from kdcompile.data.regions import MOST_PIXELS

Row = Mapping[str, Any]
LARGEST = 1 << 30  # bytes: COCO's own training file has half as many
FORM = 'write "images", "annotations" and "categories" as in docs/data.md, one object a row'


@dataclass(frozen=True)
class CocoImage:
    """One image.

    Args:
        name: its file's, as the file names it.
        size: height and width.
        rows: its annotations.
        kinds: the index of the class of each.
    """

    name: str
    size: tuple[int, int]
    rows: Sequence[Row]
    kinds: Sequence[int]


@dataclass(frozen=True)
class CocoFile:
    """The images in the file's order, and the names of the classes by ascending id."""

    images: Sequence[CocoImage]
    classes: tuple[str, ...]


def read_coco(path: Path) -> CocoFile:
    """The file, each of its parts checked against the others.

    Raises:
        KDError: `annotations-missing`, `annotations-syntax`, `coco-images`, `coco-empty`,
            `annotation-twice`, `category-unknown` or `annotation-missing`.
    """
    whole = _parts(path)
    where = str(path)
    if not whole["images"]:
        raise KDError("coco-images", "the file names no images", where, "list them in images")
    if not whole["annotations"]:
        raise KDError(
            "coco-empty",
            "the file has no annotations, so nothing in its images is known",
            where=where,
            fix="write the split's annotations into it, or name the file that has them",
        )
    categories = _by_id(whole["categories"], "categories", where)
    if not categories or not all(isinstance(row.get("name"), str) for row in categories.values()):
        raise _syntax("its categories have no names, or there are none", where)
    number = {kind: place for place, kind in enumerate(sorted(categories))}
    _by_id(whole["annotations"], "annotations", where)
    own = _annotated(whole["annotations"], _by_id(whole["images"], "images", where), number, where)
    images = [_image(row, own.get(row["id"], []), number, where) for row in whole["images"]]
    named: set[str] = set()
    for image in images:
        if image.name in named:
            raise _twice(f"two rows of images are of {image.name}", where)
        named.add(image.name)
    names = tuple(str(categories[kind]["name"]) for kind in sorted(categories))
    if len(set(names)) < len(names):
        raise _twice("two of its categories have one name", where)
    return CocoFile(images, names)


def _parts(path: Path) -> dict[str, list[Row]]:
    try:
        found = read_json(path, LARGEST, finite=False)  # of NaN its box tells
    except OSError as error:
        raise KDError(
            "annotations-missing",
            f"the annotations cannot be read: {error}",
            where=str(path),
            fix="set data.root, and data.train, val and test to the COCO file of each split",
        ) from error
    except ValueError as error:
        raise _syntax(f"the file is no JSON: {error}", str(path)) from error
    parts: dict[str, list[Row]] = {}
    for name in ("images", "annotations", "categories"):
        part = found.get(name) if isinstance(found, dict) else None
        if not isinstance(part, list) or not all(isinstance(row, dict) for row in part):
            raise _syntax(f"the file has no list {name!r} of objects", str(path))
        parts[name] = part
    return parts


def _by_id(rows: Sequence[Row], what: str, where: str) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for place, row in enumerate(rows):
        own = row.get("id")
        if not isinstance(own, int) or isinstance(own, bool):
            raise _syntax(f"{what}[{place}] has no whole number as its id", where)
        if own in found:
            raise _twice(f"two of its {what} have the id {own}", where)
        found[own] = row
    return found


def _annotated(
    rows: Sequence[Row], images: Mapping[int, Row], number: Mapping[int, int], where: str
) -> dict[int, list[Row]]:
    """The annotations of each image, whose categories are known."""
    own: dict[int, list[Row]] = {}
    for row in rows:
        image, kind = row.get("image_id"), row.get("category_id")
        if not isinstance(image, int) or image not in images:
            raise KDError(
                "annotation-missing",
                f"annotation {row['id']} is of image {image!r}, which is not in the file",
                where=where,
                fix="add the image to images, or take the annotation out",
            )
        if not isinstance(kind, int) or kind not in number:
            raise KDError(
                "category-unknown",
                f"annotation {row['id']} is of category {kind!r}, which is not in the file",
                where=where,
                fix=f"add it to categories, or use one of {', '.join(map(str, sorted(number)))}",
            )
        own.setdefault(image, []).append(row)
    return own


def _image(row: Row, own: Sequence[Row], number: Mapping[int, int], where: str) -> CocoImage:
    size = row.get("height"), row.get("width")
    if not isinstance(row.get("file_name"), str) or not row["file_name"]:
        raise _syntax(f"image {row['id']} has no file_name", where)
    whole = all(isinstance(side, int) and 0 < side <= MOST_PIXELS for side in size)
    if not whole or row["height"] * row["width"] > MOST_PIXELS:
        raise _syntax(f"image {row['id']} has no width and height in pixels", where)
    kinds = [number[annotation["category_id"]] for annotation in own]
    return CocoImage(row["file_name"], (int(row["height"]), int(row["width"])), own, kinds)


def _syntax(problem: str, where: str) -> KDError:
    return KDError("annotations-syntax", problem, where, FORM)


def _twice(problem: str, where: str) -> KDError:
    return KDError("annotation-twice", problem, where, "keep one of the two, and give each its id")
