"""The pool of images without annotations, of which some are to be labelled.

`data.unlabelled` is a folder, a list of paths relative to the root, a selection of an archive, or
a name that the factory knows, by the format of the splits. What is annotated there is ignored. It
is read only where it is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from os.path import isdir, isfile
from pathlib import Path

import numpy as np

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.progress import counted
from kdcompile.data.entry import SUFFIXES, inside, made_photos, read_list, require_image
from kdcompile.data.formats import Archive, Files
from kdcompile.data.photo import Photo
from kdcompile.data.splits import SPLITS, Splits, check_root, format_of

FIELD = "unlabelled"


@dataclass(frozen=True)
class Pool:
    """The photos to choose from, and those that a split holds too ("train/a.jpg")."""

    photos: list[Photo]
    left_out: list[dict[str, str]]  # name, twin


def load_pool(data: Data, folder: Path, splits: Splits) -> Pool:
    """Read the pool, without photos of the splits.

    A copy of a photo of a split is left out, and of a folder the photo itself: a folder may hold
    all photos, with annotations or without.

    Args:
        data: the spec's section.
        folder: the spec's folder, where a factory's file lies.
        splits: what `load_splits` gives.

    Raises:
        KDError: `pool-unset`, `pool-missing`, `pool-empty`; `pool-labelled`, a list or selection
            names a photo of a split; those of the format.
    """
    photos, is_folder = _photos(data, folder)
    if not is_folder:
        _refuse_labelled(data, photos, splits)
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
            f"no image is left to be labelled: {have}",
            where=_where(data),
            fix="put images there that no split holds, or name another pool in data.unlabelled",
        )
    return Pool(kept, [{"name": photo.name, "twin": held[photo.sha256()]} for photo in twins])


def _photos(data: Data, folder: Path) -> tuple[list[Photo], bool]:
    """The photos, and whether they are all that a folder holds."""
    check_root(data)
    given = _given(data)
    form = format_of(data)
    if isinstance(form, Files):
        files, is_folder = _files(data)
        return [Photo(name, path=path) for name, path in files.items()], is_folder
    if isinstance(form, Archive):
        return form.photos(data.root, given, False)[0], False
    nothing = np.zeros((0, 2), np.float32)
    made = made_photos(data, folder, FIELD)
    return [replace(photo, points=nothing, label=None) for photo in made], False


def _files(data: Data) -> tuple[dict[str, Path], bool]:
    """Paths by their names relative to the root, and whether they are all of a folder."""
    path = inside(data.root, _given(data))
    try:
        if isdir(path):
            images = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
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


def _given(data: Data) -> str:
    """What the spec names."""
    if data.unlabelled is None:
        raise KDError(
            "pool-unset",
            "the spec names no unlabelled images",
            where="[data] unlabelled",
            fix='name their folder or list under data.root: --set data.unlabelled="pool"',
        )
    return data.unlabelled


def _where(data: Data) -> str:
    return f"{data.root / str(data.unlabelled)} [data] unlabelled"


def _refuse_labelled(data: Data, photos: Sequence[Photo], splits: Splits) -> None:
    """Refuse a photo that is named in a split too."""
    held = {mark: s for s in SPLITS for p in getattr(splits, s) if (mark := _mark(data, s, p))}
    found = [(p.name, held[mark]) for p in photos if (mark := _mark(data, FIELD, p)) in held]
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


def _mark(data: Data, split: str, photo: Photo) -> tuple[int | str, ...] | None:
    """What tells a photo from all others, by whatever path it is named; None where nothing does."""
    path, form = photo.path, format_of(data)
    if isinstance(form, Archive):
        path = form.path(data.root, getattr(data, split))
    if path is None:
        return None
    info = path.stat()
    return info.st_dev, info.st_ino, photo.name if isinstance(form, Archive) else ""
