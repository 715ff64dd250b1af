"""The task `segmentation`: a class for each pixel, by logits [N, K, h, w] over the image.

An image is judged at its own size: the logits of the part that the photo fills are scaled to it
bilinearly, and the class with the largest is compared with the mask. So a score does not depend on
the network's stride nor on the size that it sees, and is what published tables have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcompile.core.plugins import register
from kdcompile.core.progress import counted
from kdcompile.data.coreset import cells
from kdcompile.data.masks import (
    IGNORED,
    Mask,
    check_indices,
    check_mask,
    fitted_mask,
    mask_of,
    require_mask,
)
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Frame
from kdcompile.tasks.metric import Metric
from kdcompile.tasks.recording import Recording
from kdcompile.tasks.records import Recorded, over_sums
from kdcompile.tasks.strata import Stratum, by_contents
from kdcompile.tasks.task import Floats

TINY = 1e-12
DRAWS = 999  # resamples of an interval: a class that few images have varies much
RIGHT, WRONG, MISSED = range(3)  # of a record: pixels of each class that are so, [3, K]


def _counts(sums: Floats) -> tuple[Floats, Floats, Floats]:
    """Pixels rightly and wrongly taken for each class, and missed, [..., K] each."""
    found = sums.reshape(*sums.shape[:-1], 3, -1)
    return found[..., RIGHT, :], found[..., WRONG, :], found[..., MISSED, :]


def ious(sums: Floats) -> Floats:
    """IoU of each class [..., K] by summed records [..., 3 K]; NaN of one that no mask has."""
    right, wrong, missed = _counts(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(right + missed > 0, right / (right + wrong + missed), np.nan)


def _miou(sums: Floats) -> Any:
    known = ious(sums)
    count = np.isfinite(known).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, np.nansum(known, axis=-1) / count, np.nan)


def recalls(sums: Floats) -> Floats:
    """The share of each class's pixels that are found, [..., K]; NaN of one that no mask has."""
    right, _, missed = _counts(sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        return right / (right + missed)


def _accuracy(sums: Floats) -> Any:
    right, _, missed = (part.sum(-1) for part in _counts(sums))
    with np.errstate(invalid="ignore", divide="ignore"):
        return right / (right + missed)


MIOU = Metric("miou", over_sums(_miou), higher=True, most=1.0, draws=DRAWS, records=True)
PIXELS = Metric(
    "pixel_accuracy", over_sums(_accuracy), higher=True, most=1.0, draws=DRAWS, records=True
)
OF_A_CLASS = {MIOU.name: ious, PIXELS.name: recalls}


@register("tasks", "segmentation")
class Segmentation(Recording):
    """A class for each pixel, by the largest of its logits [N, K, h, w]."""

    kind = like = "segmentation"
    output, unit = "logits", "1"
    metrics = (MIOU, PIXELS)
    is_dense, parts, labels = True, "by_class", "masks"

    def is_annotated(self, photo: Photo) -> bool:
        """Whether it has a mask."""
        return photo.mask is not None

    def truth(self, photo: Photo) -> float:
        """The error of a right answer, 0; the mask itself is not read.

        Raises:
            KDError: `mask-missing`.
        """
        require_mask(photo)
        return 0.0

    def record(self, output: NDArray[Any], photo: Photo, frame: Frame) -> Floats:
        """The image's error, 1 less the mean IoU of the classes in its mask, and pixel counts.

        Not a number where the output is none; 0 where nothing of the image is judged.

        Raises:
            KDError: those of `mask_of` and `check_mask`.
        """
        count, mask = output.shape[1], mask_of(photo)
        check_mask(mask, frame.photo, count, photo.name)
        if not np.isfinite(output).all():
            return np.full(1 + 3 * count, np.nan)
        judged = mask != IGNORED
        pairs = mask[judged].astype(np.int64) * count + class_map(output, frame)[judged]
        table = np.bincount(pairs, minlength=count * count).reshape(count, count)
        right = np.diag(table)
        sums = np.stack([right, table.sum(0) - right, table.sum(1) - right]).astype(np.float64)
        value = float(_miou(sums.ravel()))
        return np.concatenate([[1 - value if value == value else 0.0], sums.ravel()])

    def told(self, output: NDArray[Any], frame: Frame) -> list[Floats]:
        """The mean probability of each class, and the mean entropy in each part of the image.

        The entropy is a share of the largest, log K. Cells of the padding have no weight.
        """
        values = output.astype(np.float64)
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
        weights = frame.inside(*output.shape[2:])[None, None].astype(np.float64)
        unsure = -np.sum(values * np.log(np.maximum(values, TINY)), axis=1, keepdims=True)
        unsure /= np.log(values.shape[1])
        parts = cells(unsure * weights) / np.maximum(cells(weights), TINY)
        means = (values * weights).sum((2, 3)) / weights.sum()
        return [means, parts.reshape(1, -1)]

    def photo_groups(self, photos: Sequence[Photo], classes: Sequence[str] | None) -> list[Stratum]:
        """The images in whose mask each class is; every mask is read."""
        held = []
        for photo in counted(photos, len(photos), "data", "masks"):
            seen = np.bincount(mask_of(photo).ravel(), minlength=IGNORED + 1)[:IGNORED]
            held.append(np.flatnonzero(seen))
        return by_contents(held, lambda k: self.name_of_class(k, classes))

    def answer(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """The class of each pixel of the photo, uint8 [H, W]."""
        return class_map(output, frame)

    def describe(self, output: NDArray[Any], classes: Sequence[str] | None) -> dict[str, Any]:
        """`shares`: of the pixels of a class map [H, W], by each class that has any."""
        found = np.bincount(output.ravel(), minlength=256)[:IGNORED]
        shares = found / max(int(found.sum()), 1)
        order = np.argsort(-shares, kind="stable")
        return {
            "shares": {
                self.name_of_class(int(k), classes): round(float(shares[k]), 6)
                for k in order
                if shares[k] > 0
            }
        }

    def check_output(self, shape: tuple[int, ...]) -> str | None:
        """Four axes, two classes at least, and as many at most as a mask has indices for."""
        good = len(shape) == 4 and 2 <= shape[1] <= IGNORED
        return None if good else f"segmentation needs logits [N, K, h, w], K from 2 to {IGNORED}"

    def check_labels(
        self, labels: Sequence[float], outputs: int, classes: Sequence[str] | None
    ) -> str | None:
        """One output a class; the masks themselves are looked at where they are read."""
        if classes is not None and len(classes) != outputs:
            return f"data.classes has {len(classes)} names, the network {outputs} outputs"
        return None

    def check_photo(self, photo: Photo, outputs: int) -> None:
        """Refuse a mask with an index that no output has.

        Raises:
            KDError: those of `mask_of` and `check_indices`.
        """
        check_indices(mask_of(photo), outputs, photo.name)

    def constant_scores(
        self, train: Sequence[float], predicted: Sequence[Any] | Floats, true: Sequence[float]
    ) -> dict[str, float]:
        """Of naming the most frequent class of these images everywhere."""
        table = np.asarray(predicted, np.float64)
        right, _, missed = _counts(table[:, 1:])
        wanted = right + missed
        best = int(wanted.sum(0).argmax())
        made = np.zeros((len(table), 3, wanted.shape[1]))
        made[:, MISSED] = wanted
        made[:, RIGHT, best], made[:, MISSED, best] = wanted[:, best], 0
        made[:, WRONG, best] = wanted.sum(1) - wanted[:, best]
        rows = np.concatenate([table[:, :1], made.reshape(len(table), -1)], axis=1)
        return self.scores(rows, true)

    def parts_of(
        self, true: Floats, errors: Floats, classes: Sequence[str] | None
    ) -> list[Stratum]:
        """The images, once for each class that a mask has: `class` and its `index`."""
        if not isinstance(errors, Recorded):
            return []
        right, _, missed = _counts(errors.rows)
        seen = np.flatnonzero((right + missed)[errors.places].sum(0) > 0)
        every = np.arange(len(errors))
        return [
            ({"class": self.name_of_class(int(k), classes), "index": int(k)}, every) for k in seen
        ]

    def metric_of(self, metric: Metric, about: Mapping[str, Any]) -> Metric:
        """That of the one class: its IoU, or the share of its pixels that are found."""
        if "index" not in about:
            return metric
        of_class, place = OF_A_CLASS[metric.name], int(about["index"])
        return replace(metric, of=over_sums(lambda sums: of_class(sums)[..., place]))

    def drawn(self, output: NDArray[Any], frame: Frame) -> NDArray[Any]:
        """The class of each pixel of the input plane, uint8 [h, w]; 255 in the padding."""
        whole = class_map(output, Frame(frame.seen, frame.seen, frame.plane))
        made = np.full(frame.plane, IGNORED, np.uint8)
        made[: frame.seen[0], : frame.seen[1]] = whole
        return made

    def drawn_truth(self, photo: Photo, frame: Frame) -> NDArray[Any]:
        """The mask as `drawn` gives a class map."""
        return fitted_mask(photo, frame.seen, frame.plane)


def class_map(output: NDArray[Any], frame: Frame) -> Mask:
    """The class of each pixel of a photo, uint8 [H, W], from one image's logits [1, K, h, w]."""
    height, width = output.shape[2:]
    rows, columns = (seen / plane for seen, plane in zip(frame.seen, frame.plane, strict=True))
    box = (0.0, 0.0, width * columns, height * rows)
    if frame.photo == (height, width) and (rows, columns) == (1, 1):
        return np.asarray(output[0].argmax(0), np.uint8)
    best = np.full(frame.photo, -np.inf, np.float32)
    found = np.zeros(frame.photo, np.uint8)
    for index, plane in enumerate(output[0]):
        values = np.asarray(
            Image.fromarray(np.ascontiguousarray(plane, np.float32)).resize(
                frame.photo[::-1], Image.Resampling.BILINEAR, box=box
            )
        )
        larger = values > best
        found[larger], best[larger] = index, values[larger]
    return found
