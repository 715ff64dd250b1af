"""Images from a user's own data factory, checked before anything is computed from them."""

from dataclasses import replace
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np

from kdcompile.config.spec import Data
from kdcompile.core.errors import KDError
from kdcompile.core.user_code import load_factory, users_code
from kdcompile.data.photo import Photo
from kdcompile.data.points import checked_points


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
            fix="return a list of kdcompile.data.photo.Photo, each with one of path, encoded and "
            "array (uint8 [H, W, C])",
        )
    assert isinstance(photo, Photo), "anything else is a problem"
    return replace(photo, points=checked_points(photo.points, photo.name, None))


def _problem(photo: Any) -> str | None:
    """What is wrong with what a factory gave as a photo, in words, or None."""
    if not isinstance(photo, Photo):
        return f"is a {type(photo).__name__}"
    sources = [photo.path, photo.encoded, photo.array]
    if sum(source is not None for source in sources) != 1:
        return "has none or several of path, encoded and array"
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
