"""Every image decoded once, before anything is spent on a build that one of them would stop."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import PIL

from kdcompile import __version__
from kdcompile.config.spec import Spec
from kdcompile.core.errors import KDError
from kdcompile.core.files import write_json
from kdcompile.core.progress import counted
from kdcompile.core.readers import read_json
from kdcompile.data.boxes import clipped_boxes
from kdcompile.data.formats import Files
from kdcompile.data.masks import IGNORED, check_indices, check_size, mask_of, mask_sha256
from kdcompile.data.photo import Photo, check_within
from kdcompile.data.splits import SPLITS, evenly, format_of, load_splits

log = logging.getLogger("kdcompile")

CACHE = "images.json"  # in the store: what is known of images, by their content
SHOWING = "list photos that show something"
# SHA-256 -> height, width, 1 where it is of one colour; of masks the largest index
Known = dict[str, list[int]]


def check_data(spec: Spec, store: Path) -> None:
    """Refuse data that a stage would stop on, or that teaches nothing.

    Each content is decoded once and remembered in the store.

    Raises:
        KDError: those of `load_splits`, `Photo.pixels` and `mask_of`; `annotation-outside`,
            `mask-size`, `mask-index`,
            `data-constant` or `data-duplicate`, and the same of `calib-`.
    """
    splits = load_splits(spec.data, spec.folder)
    known = _read(store / CACHE)
    photos = [photo for split in SPLITS for photo in getattr(splits, split)]
    new = {photo.sha256(): photo for photo in photos if photo.sha256() not in known}
    masks = {_mask_key(photo): photo for photo in photos if photo.mask is not None}
    masks = {key: photo for key, photo in masks.items() if key not in known}
    if new or masks:
        log.info("data: looking at %d images", len(new))
        known |= _look(new, spec.export.profile[1][1])
        known |= {key: _look_at_mask(photo) for key, photo in masks.items()}
        _write(store / CACHE, known)
    for photo in photos:
        height, width, _ = known[photo.sha256()]
        check_within(photo.points, (height, width), photo.name, _source(spec, photo))
        if len(photo.boxes):
            clipped_boxes(photo.boxes, (height, width), photo.name, _source(spec, photo))
        if photo.mask is not None:
            mask = known[_mask_key(photo)]
            check_size(tuple(mask[:2]), (height, width), photo.name)
            if splits.classes is not None and mask[2] >= len(splits.classes):
                check_indices(mask_of(photo), len(splits.classes), photo.name)
    _refuse_empty(spec, splits.train, known)


def _source(spec: Spec, photo: Photo) -> str:
    """Where a user looks for the annotation of a photo."""
    form = format_of(spec.data)
    if isinstance(form, Files) and form.in_one_file:
        return f"{spec.data.root / spec.data.annotations}, {photo.name}"
    return f"{spec.data.format} [data] format, {photo.name}"


def _look(photos: dict[str, Photo], channels: int) -> Known:
    def look(photo: Photo) -> list[int]:
        if photo.tensors:
            return [0, 0, int(photo.is_flat(channels))]
        pixels = photo.pixels(channels)
        return [*pixels.shape[:2], int((pixels == pixels[:1, :1]).all())]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = counted(pool.map(look, photos.values()), len(photos), "data", "images")
        return dict(zip(photos, found, strict=True))


def _mask_key(photo: Photo) -> str:
    return f"mask {mask_sha256(photo)}"


def _look_at_mask(photo: Photo) -> list[int]:
    """Height, width, and the largest index that is judged; 0 where none is."""
    mask = mask_of(photo)
    return [*mask.shape, int(mask[mask != IGNORED].max(initial=0))]


def _refuse_empty(spec: Spec, train: Sequence[Photo], known: Known) -> None:
    """Training or calibration photos that show nothing, or one thing only."""
    factory = "; a factory may be giving empty images"
    one = "list different photos, or that one once"
    _refuse_same("data", "training", train, known, "[data] train", (SHOWING + factory, one))
    if spec.quantize.select == "even":  # else the network chooses, and `calibrate` looks at them
        chosen = evenly(train, spec.quantize.images)
        fixes = (f"{SHOWING}, or raise quantize.images", "raise quantize.images")
        _refuse_same("calib", "calibration", chosen, known, "[quantize] images", fixes)


def _refuse_same(
    code: str,
    what: str,
    photos: Sequence[Photo],
    known: Known,
    where: str,
    fixes: tuple[str, str],
) -> None:
    count = len(photos)
    if all(known[photo.sha256()][2] for photo in photos):
        message = f"each of the {count} {what} images is of one colour"
        raise KDError(f"{code}-constant", message, where, fixes[0])
    if count > 1 and len({photo.sha256() for photo in photos}) == 1:
        message = f"the {count} {what} images are one image, byte for byte"
        raise KDError(f"{code}-duplicate", message, where, fixes[1])


def _by() -> str:
    """What decided: an image that another version refuses is looked at again."""
    return f"kdcompile {__version__}, pillow {PIL.__version__}"


def _read(path: Path) -> Known:
    try:
        record: dict[str, Any] = read_json(path)
        images = {sha: [int(n) for n in found] for sha, found in record["images"].items()}
        is_whole = record["by"] == _by() and all(len(found) == 3 for found in images.values())
        return images if is_whole else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # torn: a slower start
        return {}


def _write(path: Path, known: Known) -> None:
    with suppress(OSError):  # of a store that cannot be written the first stage tells
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"by": _by(), "images": known})
