"""The three splits of a data set, without images that would leak from one into another."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from os.path import isdir
from pathlib import Path

from kdcompile.config.spec import Data
from kdcompile.core import plugins
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher, mark
from kdcompile.core.progress import counted
from kdcompile.core.store import digest
from kdcompile.core.user_code import factory_sources
from kdcompile.data.entry import Entry, made_photos, overlap, refuse_shared
from kdcompile.data.formats import Archive, Files, Format
from kdcompile.data.masks import mask_sha256
from kdcompile.data.photo import Photo

SPLITS = ("train", "val", "test")
Row = tuple[str, str, str]  # the name, what stands there, and what is annotated in it
MOST_KEPT = 256 << 20  # bytes in memory, of the photos that a factory made last
_kept: dict[str, dict[str, list[Photo]]] = {}
WRITTEN = {".kdcompile", ".kdcompile-work", "dist", "overlays", "__pycache__"}


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


def judged(test: Sequence[Photo], limit: int | None) -> list[Photo]:
    """The test photos that a verdict rests on: `evenly` of those that differ.

    A copy says nothing that its twin does not, and would make an interval narrower all the same.
    """
    first: dict[str, Photo] = {}
    for photo in test:
        first.setdefault(photo.sha256(), photo)
    return evenly(list(first.values()), limit)


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
        [
            photo.sha256(),
            hashlib.sha256(photo.points.tobytes()).hexdigest(),
            photo.label,
            *([] if photo.mask is None else [mask_sha256(photo)]),
            *([hashlib.sha256(photo.boxes.tobytes()).hexdigest()] if len(photo.boxes) else []),
        ]
        for photo in photos
    ]
    return digest(sorted(rows, key=str))


def splits_digest(data: Data, folder: Path, hasher: Hasher) -> dict[str, str]:
    """A hash of what `load_splits` leaves of each split, by content and not by time."""
    return {split: digest(rows) for split, rows in splits_rows(data, folder, hasher).items()}


def splits_rows(data: Data, folder: Path, hasher: Hasher) -> dict[str, list[Row]]:
    """What `load_splits` leaves of each split: names, hashes of images and of annotations.

    Images that have a twin in a split that is judged later do not count. What a factory makes is
    not known without running it, nor what an archive holds without reading all of it, so there the
    files that may be read and the names of the later splits count instead.
    """
    check_root(data)
    form = format_of(data)
    if not isinstance(form, Files):
        read = read_rows(data, folder, hasher, SPLITS)
        names = [(f"[data] {split}", getattr(data, split), "") for split in SPLITS]
        return {split: [*read, *names[n:]] for n, split in enumerate(SPLITS)}
    found = _entries(form, data)
    result: dict[str, list[Row]] = {}
    held: set[str] = set()
    for split in reversed(SPLITS):
        shown = counted(found[split], len(found[split]), "data", f"images of {split}")
        rows = [(entry, hasher.file(entry.image)) for entry in shown]
        result[split] = [
            (entry.name, sha, digest(entry.mark(hasher))) for entry, sha in rows if sha not in held
        ]
        held |= {sha for _, sha in rows}
    return result


def read_rows(data: Data, folder: Path, hasher: Hasher, splits: Iterable[str]) -> list[Row]:
    """The files that a factory may read, or the archives of the splits."""
    code: dict[str, str] = {}
    form = format_of(data)
    if isinstance(form, Archive):
        paths = {form.path(data.root, getattr(data, split)) for split in splits}
    else:
        code, paths = hasher.files(factory_sources(data.format, folder), folder), _files(data)
    return [(name, sha, "") for name, sha in (hasher.files(paths, data.root) | code).items()]


def _photos(data: Data, folder: Path) -> tuple[dict[str, list[Photo]], tuple[str, ...] | None]:
    """The photos of each split, and the names of the classes."""
    check_root(data)
    form = format_of(data)
    if isinstance(form, Files):
        found = _entries(form, data)
        labels = {entry.label for entry in found["train"]}
        names = sorted(label for label in labels if isinstance(label, str))
        numbers = {name: number for number, name in enumerate(names)}
        photos = {split: [entry.photo(numbers) for entry in found[split]] for split in SPLITS}
        told = form.classes(data) if form.classes else tuple(data.classes)
        return photos, tuple(names) or told or None
    if isinstance(form, Archive):
        read = {split: form.photos(data.root, getattr(data, split), True) for split in SPLITS}
        photos = {split: found for split, (found, _) in read.items()}
        _refuse_shared(data, form, photos)
        return photos, read["train"][1]
    return _made(data, folder), tuple(data.classes) or None


def _made(data: Data, folder: Path) -> dict[str, list[Photo]]:
    """What a factory makes of each split: every pass of a build asks, and small ones are kept."""
    read = sorted({*factory_sources(data.format, folder), *_files(data)})
    marks = [(str(path), *mark(path.stat())) for path in read]
    asked = digest([data.model_dump(mode="json"), str(folder.resolve()), marks])
    made = _kept.get(asked) or {split: made_photos(data, folder, split) for split in SPLITS}
    _kept.clear()
    if sum(photo.held for photos in made.values() for photo in photos) <= MOST_KEPT:
        _kept[asked] = made
    # copies, so that what is worked out of a photo goes with the pass that did
    return {split: [replace(photo) for photo in photos] for split, photos in made.items()}


def format_of(data: Data) -> Format | None:
    """The format of the data; None where a factory of the user's makes the photos.

    Raises:
        KDError: `format-unknown`, or those of `plugins.find`.
    """
    import kdcompile.data.formats  # noqa: F401  a cache key covers all of them

    if ":" in data.format:
        return None
    found: Format = plugins.find("formats", data.format, Format, "[data] format")
    return found


def check_root(data: Data) -> None:
    """The data's folder must be there.

    Raises:
        KDError: `data-missing`.
    """
    if not isdir(data.root):
        raise KDError(
            "data-missing",
            f"there is no folder {data.root.name!r}",
            where=f"{data.root} [data] root",
            fix="correct data.root, or pass the folder with --set data.root=PATH",
        )


def _refuse_shared(data: Data, form: Archive, found: Mapping[str, Sequence[Photo]]) -> None:
    """Refuse an image of an archive in two splits.

    Raises:
        KDError: `split-overlap`.
    """
    for first, second in combinations(found, 2):
        paths = (form.path(data.root, getattr(data, split)) for split in (first, second))
        if next(paths).samefile(next(paths)):
            names = {photo.name for photo in found[second]}
            shared = [photo.name for photo in found[first] if photo.name in names]
            if shared:
                raise overlap((first, second), shared)


def _entries(form: Files, data: Data) -> dict[str, list[Entry]]:
    """What the data's lists and annotations name, by split; no file in two of them.

    Raises:
        KDError: those of the format; `data-unreadable`, `split-overlap`.
    """
    try:
        found = form.entries(data)
        refuse_shared(found)
    except OSError as error:  # a folder without rights, a name that is too long
        raise KDError(
            "data-unreadable",
            f"the data cannot be read: {error}",
            where=f"{data.root} [data]",
            fix="make its folders and files readable, and correct data.root and the splits",
        ) from error
    return found


def _files(data: Data) -> set[Path]:
    """What a factory may read, without what a build or a run writes."""
    found = (path for pattern in data.files for path in data.root.glob(pattern) if path.is_file())
    return {path for path in found if not WRITTEN & set(path.relative_to(data.root).parts)}
