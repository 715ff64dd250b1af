"""The pool of images without annotations, which train against the teacher or are to be labelled.

`data.unlabelled` is a folder, a glob, a list of paths relative to the root, a selection of an
archive, or a name that the factory knows, by the format of the splits; or several of these. What is
annotated there is ignored. A training reads it, and the choice of what to label next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import isdir, isfile
from pathlib import Path

import numpy as np

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.files import Hasher
from kdcompile.core.progress import counted
from kdcompile.data.entry import SUFFIXES, inside, made_photos, read_list, require_image
from kdcompile.data.formats import Archive, Files
from kdcompile.data.photo import Photo
from kdcompile.data.splits import SPLITS, Row, Splits, check_root, format_of

FIELD = "unlabelled"
GLOB = frozenset("*?[")
Named = tuple[str, Photo]  # what names it in data.unlabelled, and it


@dataclass(frozen=True)
class Pool:
    """The photos without labels, and those that a split holds too ("train/a.jpg")."""

    photos: list[Photo]
    left_out: list[dict[str, str]]  # name, twin


def load_pool(data: Data, folder: Path, splits: Splits) -> Pool:
    """Read the pool, without photos of the splits.

    A copy of a photo of a split is left out, and of a folder or glob the photo itself: a folder may
    hold all photos, with annotations or without.

    Args:
        data: the spec's section.
        folder: the spec's folder, where a factory's file lies.
        splits: what `load_splits` gives.

    Raises:
        KDError: `pool-unset`, `pool-missing`, `pool-empty`; `pool-labelled`, a list or selection
            names a photo of a split; those of the format.
    """
    photos, named = _photos(data, folder)
    _refuse_labelled(data, named, splits)
    held = {
        photo.sha256(): f"{split}/{photo.name}"
        for split in SPLITS
        for photo in getattr(splits, split)
    }
    shown = list(counted(photos, len(photos), "data", "unlabelled images"))
    kept = [photo for photo in shown if photo.sha256() not in held]
    twins = [photo for photo in shown if photo.sha256() in held]
    if not kept:
        have = f"all {len(photos)} are in the splits" if photos else "there is none"
        raise KDError(
            "pool-empty",
            f"no unlabelled image is left: {have}",
            where=_where(data),
            fix="put images there that no split holds, or name another pool in data.unlabelled",
        )
    return Pool(kept, [{"name": photo.name, "twin": held[photo.sha256()]} for photo in twins])


def pool_rows(
    data: Data, folder: Path, hasher: Hasher, held: Mapping[str, Sequence[Row]]
) -> list[Row]:
    """What the pool holds and the splits do not, for a cache key: names and hashes.

    Of an archive its file counts; what a factory may read, all splits' rows have.

    Args:
        data: the spec's section.
        folder: the spec's folder.
        hasher: of the store.
        held: the rows of the splits.

    Raises:
        KDError: `pool-missing`; those of the format.
    """
    check_root(data)
    form, given = format_of(data), _given(data)
    rows: list[Row] = [(f"[data] {FIELD}", name, "") for name in given]
    if isinstance(form, Archive):
        paths = {form.path(data.root, name) for name in given}
        return [*rows, *((name, sha, "") for name, sha in hasher.files(paths, data.root).items())]
    if not isinstance(form, Files):
        return rows
    known = {sha for split in held.values() for _, sha, _ in split}
    files = {name: path for one in given for name, path in _files(data, one)[0].items()}
    shown = counted(files.items(), len(files), "data", "unlabelled images")
    found = [(name, hasher.file(path), "") for name, path in shown]
    return [row for row in found if row[1] not in known]


def _photos(data: Data, folder: Path) -> tuple[list[Photo], list[Named]]:
    """The photos, and those of them that a list or a selection names one by one."""
    check_root(data)
    form = format_of(data)
    found: dict[str | tuple[str, int], Photo] = {}
    named: list[Named] = []
    for one in _given(data):
        is_open = False
        if isinstance(form, Files):
            files, is_open = _files(data, one)
            own = [Photo(name, path=path) for name, path in files.items()]
        elif isinstance(form, Archive):
            own = form.photos(data.root, one, False)[0]
        else:
            nothing = np.zeros((0, 2), np.float32)
            made = made_photos(data.model_copy(update={FIELD: one}), folder, FIELD)
            own = [replace(photo, points=nothing, label=None) for photo in made]
        for number, photo in enumerate(own):  # a file is one image, whatever else names it
            found[photo.name if isinstance(form, Files) else (one, number)] = photo
        named += [] if is_open else [(one, photo) for photo in own]
    return [*found.values()], named


def _files(data: Data, given: str) -> tuple[dict[str, Path], bool]:
    """Paths by their names relative to the root, and whether a folder or glob gave them."""
    path = inside(data.root, given)
    try:
        is_glob = not path.exists() and not GLOB.isdisjoint(given)
        if is_glob or isdir(path):
            places = data.root.glob(given) if is_glob else path.rglob("*")
            images = (p for p in places if p.suffix.lower() in SUFFIXES and p.is_file())
            return {p.relative_to(data.root).as_posix(): p for p in sorted(images)}, True
        if not isfile(path):
            raise KDError(
                "pool-missing",
                f"there is no {path.name!r}, neither a folder of images nor a list",
                where=_where(data),
                fix="put them there, or correct data.unlabelled, relative to data.root",
            )
        names = read_list(path)
        return {name: require_image(inside(data.root, name), FIELD) for name in names}, False
    except OSError as error:
        raise KDError(
            "data-unreadable",
            f"the pool cannot be read: {error}",
            where=_where(data),
            fix="make its folders and files readable, or correct data.unlabelled",
        ) from error


def _given(data: Data) -> list[str]:
    """What the spec names."""
    if not data.unlabelled:
        raise KDError(
            "pool-unset",
            "the spec names no unlabelled images",
            where="[data] unlabelled",
            fix='name their folder or list under data.root: --set data.unlabelled="pool"',
        )
    return [data.unlabelled] if isinstance(data.unlabelled, str) else data.unlabelled


def _where(data: Data) -> str:
    given = ", ".join(_given(data))
    return f"{data.root / given} [data] unlabelled"


def _refuse_labelled(data: Data, named: Sequence[Named], splits: Splits) -> None:
    """Refuse a photo that is named in a split too."""
    held = {
        mark: split
        for split in SPLITS
        for photo in getattr(splits, split)
        if (mark := _mark(data, getattr(data, split), photo))
    }
    marks = [(photo.name, _mark(data, given, photo)) for given, photo in named]
    found = [(name, held[mark]) for name, mark in marks if mark in held]
    if not found:
        return
    name, split = found[0]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    raise KDError(
        "pool-labelled",
        f"{name}{more}: in the pool and in the {split} split",
        where=_where(data),
        fix=f"take what the splits hold out of {data.unlabelled!r}, or out of the splits",
    )


def _mark(data: Data, given: str, photo: Photo) -> tuple[int | str, ...] | None:
    """What tells a photo from all others, by whatever path it is named; None where nothing does."""
    path, form = photo.path, format_of(data)
    if isinstance(form, Archive):
        path = form.path(data.root, given)
    if path is None:
        return None
    info = path.stat()
    return info.st_dev, info.st_ino, photo.name if isinstance(form, Archive) else ""
