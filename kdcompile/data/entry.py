"""Images of a split before anything is decoded: of files, or from a user's own data factory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import isfile, normpath
from pathlib import Path
from typing import Any

import numpy as np

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.core.readers import read_text
from kdcompile.core.user_code import load_factory, users_code
from kdcompile.data.boxes import checked_boxes
from kdcompile.data.photo import Photo, checked_points
from kdcompile.data.regions import Regions

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}  # of images in a folder


@dataclass(frozen=True)
class Entry:
    """An image file with what is to be predicted of it.

    Args:
        name: of the image, as its split names it.
        image: the file.
        points: [x, y] pairs to be counted; None where a .mat file or a label says it.
        annotation: the file that the points or labels are from.
        label: the name of a class, or a value to be predicted; None where points are counted.
        mask: the index PNG of the classes of its pixels, or their regions.
        ignored: the index in it of pixels that are not judged.
        boxes: [x0, y0, x1, y1, class] of its objects.
    """

    name: str
    image: Path
    points: list[list[float]] | None
    annotation: Path | None
    label: str | float | None = None
    mask: Path | Regions | None = None
    ignored: int = 255
    boxes: list[list[float]] | None = None

    def mark(self, hasher: Hasher) -> Any:
        """What the image is annotated with, for a cache key."""
        if self.mask is not None:
            own = self.mask
            content = own.sha256() if isinstance(own, Regions) else hasher.file(own)
            return [content, self.ignored]
        if self.boxes is not None:
            return self.boxes
        if self.label is not None or self.points is not None:
            return self.points if self.label is None else self.label
        assert self.annotation is not None, "an entry has points, an annotation file or a label"
        return hasher.file(self.annotation)

    def photo(self, numbers: Mapping[str, int]) -> Photo:
        """The photo, its points checked; `numbers` turns the name of a class into its index.

        Raises:
            KDError: `annotation-invalid`, `annotation-duplicate` or `annotation-mat`.
        """
        if self.mask is not None:
            return Photo(self.name, path=self.image, mask=self.mask, ignored=self.ignored)
        if self.boxes is not None:
            boxes = np.array(self.boxes, np.float32).reshape(-1, 5)
            return Photo(self.name, path=self.image, boxes=boxes)
        if self.label is not None:
            value = numbers[self.label] if isinstance(self.label, str) else self.label
            return Photo(self.name, path=self.image, label=float(value))
        points: Any = self.points
        if points is None:
            from kdcompile.data.formats.shanghaitech_mat import read_points

            assert self.annotation is not None, "points that are not given lie in a file"
            points = read_points(self.annotation)
        return Photo(self.name, checked_points(points, self.name, self.annotation), path=self.image)


def read_list(path: Path) -> list[str]:
    """The names in a split file, one a line, blank lines ignored.

    Raises:
        KDError: `split-missing`.
    """
    try:
        lines = read_text(path).split("\n")
    except (OSError, ValueError) as error:
        raise KDError(
            "split-missing",
            f"the split list cannot be read: {error}",
            where=str(path),
            fix="write one image name a line, or correct [data] train, val, test",
        ) from error
    return [line.strip() for line in lines if line.strip()]


def require_image(path: Path, split: str) -> Path:
    """The path, which must be a file.

    Raises:
        KDError: `image-missing`.
    """
    if not isfile(path):
        raise KDError(
            "image-missing",
            f"the {split} split names {path.name}, which is not there",
            where=str(path),
            fix="put the image there, or take its line out of the split list",
        )
    return path


def inside(root: Path, name: str) -> Path:
    """The path of a name relative to the root, which it must not leave (a link in it may).

    Raises:
        KDError: `path-outside`.
    """
    path = root / name
    if not Path(normpath(path)).is_relative_to(normpath(root)):
        raise KDError(
            "path-outside",
            f"{name!r} leads out of the data's folder",
            where=str(root),
            fix="name paths under data.root, or set data.root to a folder that holds them all",
        )
    return path


def refuse_shared(found: Mapping[str, Sequence[Entry]]) -> None:
    """Refuse one file in two splits, by whatever path or link they name it.

    Copies are other files: `drop_twins` finds them by their content.

    Raises:
        KDError: `split-overlap`.
    """
    held: dict[tuple[int, int], str] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for split, entries in found.items():
        for entry in entries:
            info = entry.image.stat()
            other = held.setdefault((info.st_dev, info.st_ino), split)
            if other != split:
                shared.setdefault((other, split), []).append(entry.name)
    if shared:
        raise overlap(*next(iter(shared.items())))


def overlap(splits: tuple[str, str], names: Sequence[str]) -> KDError:
    """The refusal of images that are in both of two splits."""
    first, second = splits
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return KDError(
        "split-overlap",
        f"{names[0]}{more}: in the {first} split and in the {second} split",
        where=f"[data] {first}, {second}",
        fix=f"list each image in one split: take those out of {first} to evaluate on them",
    )


def made_photos(data: Data, folder: Path, split: str) -> list[Photo]:
    """What `factory(root, name of the split)` gives.

    Raises:
        KDError: `data-factory`; those of `load_factory` and of `checked_points`.
    """
    factory = load_factory(data.format, folder)
    what, where = f"{data.format} fails on the {split} split", f"[data] format, {split}"
    fix = "fix the factory; kdcompile --debug plan shows the full trace"
    with users_code("data-factory", what, where, fix):
        made = list(factory(data.root, getattr(data, split)))
    return [_checked(photo, number, data.format, split) for number, photo in enumerate(made)]


def _checked(photo: Any, number: int, factory: str, split: str) -> Photo:
    problem = _problem(photo)
    if problem is not None:
        name = f", {photo.name}," if isinstance(photo, Photo) else ""
        raise KDError(
            "data-factory",
            f"image {number}{name} of the {split} split {problem}",
            where=f"{factory} [data] format",
            fix="return a list of kdcompile.data.photo.Photo, each with one of path, encoded, "
            "array (uint8 [H, W, C]) and tensors (arrays by name)",
        )
    assert isinstance(photo, Photo), "anything else is a problem"
    boxes = checked_boxes(photo.boxes, photo.name, "[data] format", None)
    return replace(photo, points=checked_points(photo.points, photo.name, None), boxes=boxes)


def _problem(photo: Any) -> str | None:
    """What is wrong with what a factory gave as a photo, in words, or None."""
    if not isinstance(photo, Photo):
        return f"is a {type(photo).__name__}"
    sources = [photo.path, photo.encoded, photo.array, photo.tensors or None]
    if sum(source is not None for source in sources) != 1:
        return "has none or several of path, encoded, array and tensors"
    if photo.path is not None and not isfile(photo.path):
        return f"has a path that is no file: {photo.path}"
    if photo.array is not None and not _is_image(photo.array):
        array = photo.array
        return f"has an array of {getattr(array, 'dtype', type(array))} {list(np.shape(array))}"
    if photo.label is not None and not np.isfinite(photo.label):
        return f"has a label of {photo.label}"
    return None


def _is_image(array: Any) -> bool:
    is_bytes = isinstance(array, np.ndarray) and array.dtype == np.uint8
    return is_bytes and array.ndim == 3 and array.size > 0
