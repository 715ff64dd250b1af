"""Points, masks and boxes that a Python caller passes with images, written as files of a format."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcompile.core.errors import KDError
from kdcompile.core.files import write_text

Pixels = NDArray[np.uint8]
Samples = list[tuple[Pixels, Any]]
POOL, IMAGES = "unlabelled", "images/"
Content = dict[str, bytes]  # of files, by their names in the data's folder
MOST = 256  # indices of a mask
BOX = 5  # x0, y0, x1, y1 and the class


def array_of(given: Any) -> NDArray[Any]:
    """A tensor, or what else is like an array, as an array."""
    return np.asarray(given.detach().cpu() if hasattr(given, "detach") else given)


def invalid(what: str, where: str, fix: str) -> KDError:
    """The refusal of a sample."""
    return KDError("sample-invalid", what, where=where, fix=fix)


def points_of(label: Any, where: str) -> list[list[float]]:
    """[[x, y], ...] in pixels.

    Raises:
        KDError: `sample-invalid`.
    """
    value = array_of(label)
    if value.size and (value.ndim != 2 or value.shape[1] != 2 or value.dtype.kind not in "iuf"):
        what = f"points have the shape {list(value.shape)}"
        raise invalid(what, where, "give the points as [[x, y], ...] in pixels")
    return [[float(x), float(y)] for x, y in value.reshape(-1, 2)]


def mask_of(label: Any, where: str) -> Pixels:
    """The class of each pixel, uint8 [H, W].

    Raises:
        KDError: `sample-invalid`.
    """
    value = array_of(label)
    value = value[0] if value.ndim == 3 and value.shape[0] == 1 else value
    fix = "give the mask as whole numbers [H, W], the class of each pixel, 255 to leave one out"
    if value.ndim != 2 or value.dtype.kind not in "iub":
        raise invalid(f"a mask is {value.dtype} of shape {list(value.shape)}", where, fix)
    if value.size and not 0 <= value.min() <= value.max() < MOST:
        raise invalid(f"a mask has indices from {value.min()} to {value.max()}", where, fix)
    return np.ascontiguousarray(value.astype(np.uint8))


def boxes_of(label: Any, where: str) -> list[list[float]]:
    """[[x0, y0, x1, y1, class], ...] in pixels; or these as "boxes" and "labels" of a mapping.

    Raises:
        KDError: `sample-invalid`.
    """
    fix = (
        "give the boxes as [[x0, y0, x1, y1, class], ...] in pixels, classes from 0, or as "
        '{"boxes": [B, 4], "labels": [B]}'
    )
    if isinstance(label, Mapping):
        lacking = [name for name in ("boxes", "labels") if name not in label]
        if lacking:
            raise invalid(f"a label has no {lacking[0]!r}", where, fix)
        corners = array_of(label["boxes"]).reshape(-1, BOX - 1)
        kinds = array_of(label["labels"]).reshape(-1, 1)
        if len(corners) != len(kinds):
            raise invalid(f"there are {len(corners)} boxes and {len(kinds)} labels", where, fix)
        label = np.concatenate([corners, kinds], axis=1)
    value = array_of(label)
    if value.size and (value.ndim != 2 or value.shape[1] != BOX or value.dtype.kind not in "iuf"):
        raise invalid(f"boxes have the shape {list(value.shape)}", where, fix)
    rows = value.reshape(-1, BOX).astype(float)
    kinds = rows[:, -1]
    if not (np.isfinite(rows).all() and (kinds == np.rint(kinds)).all() and (kinds >= 0).all()):
        raise invalid(
            "a box has no whole class from 0 on, or a value that is no number", where, fix
        )
    return [[float(value) for value in row] for row in rows]


def as_files(
    kind: str, splits: Mapping[str, Samples], classes: Sequence[Any] | None, folder: Path
) -> dict[str, Any]:
    """The fields of `[data]` for images with one of `LABELS`; a file of the split is written last.

    Args:
        kind: of the task.
        splits: images with what `LABELS` gave, None for images that are not annotated.
        classes: their names, where the caller has any.
        folder: where a folder named by the content is made, if it is not there.
    """
    form, content = FORMS[kind](splits, classes)
    found = hashlib.sha256()
    for name, own in content.items():
        found.update(name.encode() + hashlib.sha256(own).digest())
    root = folder / f"{form['format'].partition('-')[0]}-{found.hexdigest()[:16]}"
    last = list(content)[-1]
    if not (root / last).is_file():
        for name, own in content.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            if name == last:
                write_text(root / name, own.decode())
            else:
                (root / name).write_bytes(own)
    return form | {"root": str(root.resolve())}


def png(image: Pixels) -> bytes:
    """An image [H, W, C] or a mask [H, W] as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(image.squeeze(2) if image.ndim == 3 and image.shape[2] == 1 else image).save(
        stream, "PNG"
    )
    return stream.getvalue()


def _images(splits: Mapping[str, Samples], place: str) -> tuple[Content, dict[str, list[str]]]:
    """The images' files in a folder, and their names by split."""
    lists = {split: [f"{split}-{n:05d}.png" for n in range(len(splits[split]))] for split in splits}
    content = {
        f"{place}{name}": png(image)
        for split, names in lists.items()
        for name, (image, _) in zip(names, splits[split], strict=True)
    }
    return content, lists


def _listed(lists: Mapping[str, Sequence[str]]) -> Content:
    """The lists of the splits, a name a line."""
    return {f"{split}.txt": "\n".join(names).encode() for split, names in lists.items()}


def _pooled(names: Sequence[str]) -> list[str]:
    """Unlabelled images as their list names them, from the data's folder on."""
    return [f"{IMAGES}{name}" for name in names]


def _with_points(
    splits: Mapping[str, Samples], classes: Sequence[Any] | None
) -> tuple[dict[str, Any], Content]:
    content, lists = _images(splits, "")
    rows = [
        json.dumps({"image": name, "points": points})
        for split, names in lists.items()
        for name, (_, points) in zip(names, splits[split], strict=True)
        if points is not None
    ]
    content |= _listed(lists)
    content["annotations.jsonl"] = "\n".join(rows).encode()
    return {"format": "points-jsonl"} | {split: f"{split}.txt" for split in lists}, content


def _with_masks(
    splits: Mapping[str, Samples], classes: Sequence[Any] | None
) -> tuple[dict[str, Any], Content]:
    content, lists = _images(splits, IMAGES)
    content |= {
        f"labels/{name}": png(mask)
        for split, names in lists.items()
        for name, (_, mask) in zip(names, splits[split], strict=True)
        if mask is not None
    }
    content |= _listed({n: _pooled(names) if n == POOL else names for n, names in lists.items()})
    named = {} if classes is None else {"classes": [str(name) for name in classes]}
    return {"format": "masks"} | named | {split: f"{split}.txt" for split in lists}, content


def _with_boxes(
    splits: Mapping[str, Samples], classes: Sequence[Any] | None
) -> tuple[dict[str, Any], Content]:
    content, lists = _images(splits, IMAGES)
    given = (rows for held in splits.values() for _, rows in held if rows)
    most = max((int(row[-1]) for rows in given for row in rows), default=0)
    names = list(map(str, range(most + 1) if classes is None else classes))
    form: dict[str, Any] = {"format": "coco"}
    if POOL in lists:
        content |= _listed({POOL: _pooled(lists.pop(POOL))})
        form[POOL] = f"{POOL}.txt"
    for split, files in lists.items():
        images: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        for number, (name, (image, boxes)) in enumerate(zip(files, splits[split], strict=True)):
            height, width = image.shape[:2]
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            for x0, y0, x1, y1, kind in boxes or ():
                box = {"image_id": number, "category_id": int(kind), "iscrowd": 0}
                rows.append({"id": len(rows), "bbox": [x0, y0, x1 - x0, y1 - y0], **box})
        kinds = [{"id": place, "name": name} for place, name in enumerate(names)]
        found = {"images": images, "annotations": rows, "categories": kinds}
        content[f"{split}.json"] = json.dumps(found).encode()
        form[split] = f"{split}.json"
    return form, content


LABELS: Mapping[str, Callable[[Any, str], Any]] = {
    "counting": points_of, "segmentation": mask_of, "detection": boxes_of,
}  # fmt: skip
FORMS = {"counting": _with_points, "segmentation": _with_masks, "detection": _with_boxes}
