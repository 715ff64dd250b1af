"""One line of a split before anything is decoded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdcompile.artifact import Hasher
from kdcompile.data.photo import Photo
from kdcompile.errors import KDError


@dataclass(frozen=True)
class Entry:
    """An image file with what is to be predicted of it.

    Args:
        name: of the image, as its split names it.
        image: the file.
        points: pairs to be counted; None where a .mat file or a label says it.
        annotation: the file that the points or labels are from.
        label: the name of a class, or a value to be predicted; None where points are counted.
    """

    name: str
    image: Path
    points: list[list[float]] | None
    annotation: Path | None
    label: str | float | None = None

    def mark(self, hasher: Hasher) -> Any:
        """What the image is annotated with, for a cache key."""
        if self.label is not None or self.points is not None:
            return self.points if self.label is None else self.label
        assert self.annotation is not None, "an entry has points, an annotation file or a label"
        return hasher.file(self.annotation)

    def photo(self, numbers: Mapping[str, int]) -> Photo:
        """The photo, its points checked; `numbers` turns the name of a class into its index.

        Raises:
            KDError: `annotation-invalid` or `annotation-mat`.
        """
        if self.label is not None:
            value = numbers[self.label] if isinstance(self.label, str) else self.label
            return Photo(self.name, path=self.image, label=float(value))
        if self.points is None:
            from kdcompile.data.shanghaitech_mat import read_points

            assert self.annotation is not None, "points that are not given lie in a file"
            points = read_points(self.annotation)
        else:
            try:
                points = np.asarray(self.points, np.float32).reshape(-1, 2)
            except (ValueError, TypeError) as error:
                raise self._invalid(f"not a list of [x, y] pairs: {error}") from error
        if not np.isfinite(points).all():
            raise self._invalid("a coordinate is not a finite number")
        return Photo(self.name, points, path=self.image)

    def _invalid(self, problem: str) -> KDError:
        return KDError(
            "annotation-invalid",
            f"the points of {self.name} are {problem}",
            where=str(self.annotation),
            fix='write "points": [[x, y], ...] in pixels',
        )


def read_list(path: Path) -> list[str]:
    """The names in a split file, one a line, blank lines ignored.

    Raises:
        KDError: `split-missing`.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
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
    if not path.is_file():
        raise KDError(
            "image-missing",
            f"the {split} split names {path.name}, which is not there",
            where=str(path),
            fix="put the image there, or take its line out of the split list",
        )
    return path
