"""Format `tensors`: numpy archives of samples, for networks that take named tensors.

    FILE.npz[@SEED][[START:STOP]]       such as  train = "windows.npz[:900]"

An archive holds one array for each of `[export.inputs]`, by its name: [N, ...], the samples one
after the other, each in the shape of its input, without that one's first axis where it is 1. With
@SEED the samples are shuffled; START:STOP takes a piece of them.
"""

from pathlib import Path

import numpy as np

from kdcompile.core.errors import KDError
from kdcompile.core.plugins import register
from kdcompile.data.formats import Archive, Labelled
from kdcompile.data.formats.npz import Selection, archive_of, archive_path
from kdcompile.data.photo import Photo


def samples(root: Path, split: str, labelled: bool = True) -> Labelled:
    """The samples of a split; they have no labels.

    Raises:
        KDError: `npz-selection`, `path-outside`, `archive-missing`, `archive-unreadable`,
            `archive-huge` or `archive-invalid`.
    """
    path, chosen = archive_path(root, split), Selection.parse(split)
    with archive_of(path) as archive:
        arrays = dict(archive)
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    count = next(iter(lengths.values()), 0)
    if set(lengths.values()) != {count} or not count:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items()) or "no array"
        raise KDError(
            "archive-invalid",
            f"its arrays do not hold one number of samples: {told}",
            where=str(path),
            fix="write each input as an array [N, ...] of the same N samples",
        )
    places = np.arange(count)
    if chosen.seed is not None:
        places = np.random.default_rng(chosen.seed).permutation(count)
    made = [
        Photo(f"{path.stem}-{i:05d}", tensors={name: a[i] for name, a in arrays.items()})
        for i in places[chosen.start : chosen.stop]
    ]
    return made, None


FORMAT = register("formats", "tensors", __name__)(Archive(archive_path, samples))
