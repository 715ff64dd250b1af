"""The three splits of a data set, without images that would leak from one into another."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdcompile.artifact import Hasher, digest
from kdcompile.data import imagefolder, npz, points_jsonl, shanghaitech_mat
from kdcompile.data.entry import Entry
from kdcompile.data.photo import Photo
from kdcompile.errors import KDError
from kdcompile.factory import factory_sources, load_factory
from kdcompile.spec import Data

SPLITS = ("train", "val", "test")
WRITTEN = {".kdcompile", "dist", "overlays", "__pycache__"}
FORMATS: Mapping[str, Callable[[Data], dict[str, list[Entry]]]] = {
    "points-jsonl": points_jsonl.entries,
    "shanghaitech-mat": shanghaitech_mat.entries,
    "imagefolder": imagefolder.entries,
}


@dataclass(frozen=True)
class Splits:
    """What remains of each split, and what was dropped because another split holds its twin.

    `classes` are the names of the classes by index, where the format knows any.
    """

    train: list[Photo]
    val: list[Photo]
    test: list[Photo]
    dropped: list[dict[str, str]]  # name, split, twin ("test/IMG_98.jpg")
    classes: tuple[str, ...] | None = None


def load_splits(data: Data, folder: Path) -> Splits:
    """Read a data set and drop byte-identical images across splits.

    A twin of a test image leaves training and validation; a twin of a validation image leaves
    training; a second copy within one split stays. The test split is never touched.

    Args:
        data: the spec's section.
        folder: the spec's folder, where a factory's file lies.

    Raises:
        KDError: a split is missing, empty or names an absent image.
    """
    photos, classes = _photos(data, folder)
    return replace(drop_twins(photos), classes=classes)


def evenly(photos: Sequence[Photo], limit: int | None) -> list[Photo]:
    """At most `limit` photos, spread evenly over the split; always the same ones."""
    if limit is None or limit >= len(photos):
        return list(photos)
    return [photos[index * len(photos) // limit] for index in range(limit)]


def drop_twins(photos: Mapping[str, list[Photo]]) -> Splits:
    """`Splits` of the photos by split, each compared with the splits that are judged after it."""
    held: dict[str, str] = {}
    kept: dict[str, list[Photo]] = {}
    dropped: list[dict[str, str]] = []
    for split in reversed(SPLITS):
        hashes = [(photo, photo.sha256()) for photo in photos[split]]
        kept[split] = [photo for photo, sha in hashes if sha not in held]
        dropped += [
            {"name": photo.name, "split": split, "twin": held[sha]}
            for photo, sha in hashes
            if sha in held
        ]
        held |= {sha: f"{split}/{photo.name}" for photo, sha in hashes if sha not in held}
        if not kept[split]:
            raise KDError(
                "split-empty",
                f"the {split} split has no image of its own",
                where=f"[data] {split}",
                fix="list at least one image that no other split holds",
            )
    return Splits(kept["train"], kept["val"], kept["test"], dropped)


def photos_digest(photos: Sequence[Photo]) -> str:
    """A hash of what photos show and of what is annotated in them, whatever order they are in.

    Unlike `splits_digest` it reads every photo, and depends on nothing but them.
    """
    rows = [
        [photo.sha256(), hashlib.sha256(photo.points.tobytes()).hexdigest(), photo.label]
        for photo in photos
    ]
    return digest(sorted(rows, key=str))


def splits_digest(data: Data, folder: Path, hasher: Hasher) -> dict[str, str]:
    """A hash of what `load_splits` leaves of each split, by content and not by time.

    Images that have a twin in a split that is judged later do not count. What a factory makes is
    not known without running it, nor what an archive holds without reading all of it, so there the
    names of the later splits count instead.
    """
    if data.format not in FORMATS:
        names = [getattr(data, split) for split in SPLITS]
        code: Mapping[str, str] = {}
        if data.format == "npz":
            paths = {npz.archive_path(data.root, name) for name in names}
        else:
            code, paths = hasher.files(factory_sources(data.format, folder), folder), _files(data)
        files = hasher.files(paths, data.root)
        return {split: digest([code, files, names[n:]]) for n, split in enumerate(SPLITS)}
    found = FORMATS[data.format](data)
    result: dict[str, str] = {}
    held: set[str] = set()
    for split in reversed(SPLITS):
        rows: list[list[Any]] = [
            [entry.name, hasher.file(entry.image), entry.mark(hasher)] for entry in found[split]
        ]
        result[split] = digest([row for row in rows if row[1] not in held])
        held |= {row[1] for row in rows}
    return result


def _photos(data: Data, folder: Path) -> tuple[dict[str, list[Photo]], tuple[str, ...] | None]:
    """The photos of each split, and the names of the classes."""
    if data.format in FORMATS:
        found = FORMATS[data.format](data)
        labels = {entry.label for entry in found["train"]}
        names = sorted(label for label in labels if isinstance(label, str))
        numbers = {name: number for number, name in enumerate(names)}
        photos = {split: [entry.photo(numbers) for entry in found[split]] for split in SPLITS}
        return photos, tuple(names) or None
    if data.format == "npz":
        read = {split: npz.photos(data.root, getattr(data, split)) for split in SPLITS}
        return {split: photos for split, (photos, _) in read.items()}, read["train"][1]
    factory = load_factory(data.format, folder)
    made = {split: list(factory(data.root, getattr(data, split))) for split in SPLITS}
    for photo in (p for photos in made.values() for p in photos):
        if not isinstance(photo, Photo):
            raise KDError(
                "data-factory",
                f"{data.format} gave a {type(photo).__name__}",
                where="[data] format",
                fix="return a list of kdcompile.data.photo.Photo",
            )
    return made, None


def _files(data: Data) -> set[Path]:
    """What a factory may read, without what a build or a run writes."""
    found = (path for pattern in data.files for path in data.root.glob(pattern) if path.is_file())
    return {path for path in found if not WRITTEN & set(path.relative_to(data.root).parts)}
