"""Data formats: how the images and annotations of each split are found, one module a format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kdcompile.config.spec import Data
from kdcompile.data.entry import Entry
from kdcompile.data.photo import Photo

Labelled = tuple[list[Photo], tuple[str, ...] | None]  # photos, and the names of the classes


@dataclass(frozen=True, kw_only=True)
class Format:
    """What every format may say.

    Args:
        defaults: of fields of `[data]` that the spec does not name.
    """

    defaults: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Files(Format):
    """A format whose splits are image files.

    Args:
        entries: the images with their annotations of `train`, `val` and `test`, by split; raises a
            `KDError` for whatever is wrong with them.
        in_one_file: every annotation is in the file that `data.annotations` names.
        classes: their names by index, where these do not follow from the entries' labels.
    """

    entries: Callable[[Data], dict[str, list[Entry]]]
    in_one_file: bool = False
    classes: Callable[[Data], tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Archive(Format):
    """A format whose splits are parts of archives that are read whole.

    Args:
        path: the archive of a split, from the data's root and the split's field.
        photos: the images of a split; with False as third argument, without their labels.
    """

    path: Callable[[Path, str], Path]
    photos: Callable[[Path, str, bool], Labelled]
