"""Data that a Python caller passes as objects, written as files of the formats that a spec names.

A file's name holds the hash of its content, so that equal samples are equal data in every process.
Images with a label become archives of `npz`, those with points, masks or boxes files.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcompile.core.errors import KDError
from kdcompile.core.files import replacing
from kdcompile.core.user_code import users_code
from kdcompile.data.given_files import (
    LABELS,
    POOL,
    Pixels,
    Samples,
    array_of,
    as_files,
    invalid,
    png,
)
from kdcompile.data.splits import SPLITS

log = logging.getLogger("kdcompile")


def written(
    given: Mapping[str, Any], kind: str, folder: Path
) -> tuple[dict[str, Any], list[int] | None]:
    """The `[data]` section that stands for data sets, and the shape of the first image.

    Args:
        given: `train`, `val`, `test` and perhaps `unlabelled`, each a list of (image, label), or of
            arrays by name, a map-style data set or a DataLoader of one; and other fields of the
            section.
        kind: of the task.
        folder: where files are written, if they are not there.

    Returns:
        The section; and [channels, height, width] of the first training image, None where
        samples are arrays by name.

    Raises:
        KDError: `data-split`, `data-loader`, `data-random`, `data-unread`, `sample-invalid`.
    """
    missing = [split for split in SPLITS if split not in given]
    if missing:
        raise KDError(
            "data-split",
            f"there is no {missing[0]!r} among the data sets",
            where="data",
            fix='pass data={"train": ..., "val": ..., "test": ...}, which share no image',
        )
    if _has_names(given["train"]):
        return _as_tensors(given, folder), None
    splits = {name: _read(given[name], name, kind) for name in (*SPLITS, POOL) if name in given}
    first = splits["train"][0][0]
    section = {name: value for name, value in given.items() if name not in (*splits, "classes")}
    channels = first.shape[2]
    section = {"mean": [0.0] * channels, "std": [1.0] * channels} | section
    folder.mkdir(parents=True, exist_ok=True)
    if kind in LABELS:
        section |= as_files(kind, splits, given.get("classes"), folder)
    else:
        train = _dataset(given["train"], "train")
        classes = given.get("classes", getattr(train, "classes", None))
        named = {name: _as_archive(name, held, classes, folder) for name, held in splits.items()}
        section |= {"format": "npz", "root": str(folder.resolve()), **named}
    return section, [channels, *first.shape[:2]]


def _has_names(given: Any) -> bool:
    """Whether the samples are arrays by name."""
    data = _dataset(given, "train")
    try:
        return len(data) > 0 and isinstance(data[0], Mapping)
    except Exception:  # whatever the user's data set raises: it is told where samples are read
        return False


def _as_tensors(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The section of samples that are arrays by name, an archive a split."""
    section = {name: value for name, value in given.items() if name not in (*SPLITS, POOL)}
    for split in SPLITS:
        samples = _mappings(given[split], split)
        arrays = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
        section[split] = _archive(split, arrays, folder)
    return section | {"format": "tensors", "root": str(folder.resolve())}


def _mappings(given: Any, split: str) -> list[dict[str, NDArray[Any]]]:
    """The samples of a split, which have the same names and shapes.

    Raises:
        KDError: `data-unread` or `sample-invalid`.
    """
    data, where = _dataset(given, split), f"data[{split!r}]"
    fix = "correct the data set; it must give arrays by name for each number below its length"
    with users_code("data-unread", "the data set raises", where, fix):
        samples = [
            {
                str(name): np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
                for name, value in dict(data[i]).items()
            }
            for i in range(len(data))
        ]
    if not samples:
        raise KDError("data-split", "there is no sample", where, "pass at least one sample")
    shapes = {name: array.shape for name, array in samples[0].items()}
    for number, sample in enumerate(samples):
        own = {name: array.shape for name, array in sample.items()}
        if own != shapes:
            what = f"a sample has {own}, the first one {shapes}"
            raise invalid(what, f"{where}[{number}]", "give all samples the same names and shapes")
    return samples


def _dataset(given: Any, split: str) -> Any:
    """What can be indexed: the data set of a loader that neither chooses nor mixes its samples.

    Raises:
        KDError: `data-loader`.
    """
    if not hasattr(given, "batch_sampler"):
        return given
    from torch.utils.data import RandomSampler, SequentialSampler, default_collate

    sampler = given.sampler
    whole = type(sampler) is SequentialSampler
    whole |= type(sampler) is RandomSampler and not sampler.replacement
    whole &= len(sampler) == len(given.dataset)
    own = (
        given.batch_sampler is not None
        and getattr(given.batch_sampler, "sampler", None) is not sampler
    )
    if not whole or own or given.collate_fn is not default_collate:
        raise KDError(
            "data-loader",
            "the loader has a sampler or a collate_fn of its own, which would change the samples",
            where=f"data[{split!r}]",
            fix="pass the data set, such as a torch.utils.data.Subset, in place of the loader",
        )
    return given.dataset


def _read(given: Any, split: str, kind: str) -> Samples:
    """All samples of a split, checked."""
    where, data = f"data[{split!r}]", _dataset(given, split)
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise KDError(
            "data-loader",
            f"a {type(data).__name__} has no length or no samples by number",
            where=where,
            fix="pass a list of (image, label), or a map-style data set",
        )
    fix = "correct the data set; it must give (image, label) for each number below its length"
    with users_code("data-unread", "the data set raises", where, fix):
        samples = [_sample(data[i], kind, f"{where}[{i}]", split) for i in range(len(data))]
        again = None if not samples else _sample(data[0], kind, f"{where}[0]", split)[0]
    if again is None:
        raise KDError("data-split", "there is no sample", where, "pass at least one sample")
    if not np.array_equal(again, samples[0][0]):
        raise KDError(
            "data-random",
            "the first sample is another image each time it is read",
            where=where,
            fix="leave random transforms out: the training has its own ([distill] scale, flip)",
        )
    return samples


def _sample(sample: Any, kind: str, where: str, split: str) -> tuple[Pixels, Any]:
    pair = isinstance(sample, tuple | list) and len(sample) == 2
    if split == POOL:
        return _pixels(sample[0] if pair else sample, where), None
    if not pair:
        what = f"a sample is a {type(sample).__name__}, not (image, label)"
        raise invalid(what, where, "give each sample as a tuple of an image and its label")
    return _pixels(sample[0], where), _label(sample[1], kind, where)


def _pixels(image: Any, where: str) -> Pixels:
    """An image as uint8 [H, W, C].

    Tensors are [C, H, W] or [H, W], arrays [H, W, C] too; floats are 0 to 1, before normalisation.
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    is_tensor = hasattr(image, "detach")
    array = np.asarray(image.detach().cpu() if is_tensor else image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[0] in (1, 3) and (is_tensor or array.shape[2] not in (1, 3)):
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in (1, 3) or not array.size:
        what = f"an image has the shape {list(array.shape)}"
        raise invalid(what, where, "give [C, H, W] or [H, W, C] with 1 or 3 channels, or [H, W]")
    if array.dtype.kind == "f":
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            fix = "give images before normalisation, and data['mean'] and data['std'] with them"
            raise invalid("an image of floats has values outside 0 to 1", where, fix)
        array = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        fix = "give uint8 from 0 to 255, or floats from 0 to 1"
        raise invalid(f"an image is of {array.dtype}", where, fix)
    return np.ascontiguousarray(array)


def _label(label: Any, kind: str, where: str) -> Any:
    """A class's number, a value, or what one of `LABELS` takes."""
    if kind in LABELS:
        return LABELS[kind](label, where)
    value = array_of(label)
    whole = value.dtype.kind in "iu" or kind != "classification"
    if value.size != 1 or value.dtype.kind not in "iuf" or not whole:
        wanted = "the number of its class" if kind == "classification" else "a number"
        what = f"a label is {value.dtype} of shape {list(value.shape)}"
        raise invalid(what, where, f"give {wanted} as the label")
    return value.item()


def _as_archive(split: str, samples: Samples, classes: Sequence[Any] | None, folder: Path) -> str:
    """The name of the archive of a split, written where it is not there."""
    images, labels = [image for image, _ in samples], [label for _, label in samples]
    arrays: dict[str, NDArray[Any]] = {} if split == POOL else {"y": np.asarray(labels)}
    if len({image.shape for image in images}) == 1:
        arrays["x"] = np.stack(images)
    else:
        encoded = list(map(png, images))
        arrays["jpeg"] = np.frombuffer(b"".join(encoded), np.uint8)
        arrays["offsets"] = np.cumsum([0, *map(len, encoded)])
    if classes is not None:
        arrays["classes"] = np.asarray([str(name) for name in classes])
    return _archive(split, arrays, folder)


def _archive(split: str, arrays: Mapping[str, NDArray[Any]], folder: Path) -> str:
    """The name of an archive of these arrays, written where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    path = folder / f"{split}-{found.hexdigest()[:16]}.npz"
    if not path.is_file():
        with replacing(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **arrays)
    return path.name
