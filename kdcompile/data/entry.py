"""One line of a split before anything is decoded."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdcompile.data.photo import Photo
from kdcompile.errors import KDError


@dataclass(frozen=True)
class Entry:
    """An image file with its points, given either as pairs or as a .mat file."""

    name: str
    image: Path
    points: list[list[float]] | None
    annotation: Path

    def photo(self) -> Photo:
        """The photo, its points checked.

        Raises:
            KDError: `annotation-invalid` or `annotation-mat`.
        """
        if self.points is None:
            from kdcompile.data.shanghaitech_mat import read_points

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
