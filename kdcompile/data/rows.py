"""Batches of samples that are rows, for a training without crops."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdcompile.data.augment import Batch, CropSampler
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess, RowPreprocess
from kdcompile.data.targets import Extra, photos_of
from kdcompile.kernels.crop_augment import Column


class RowStore(ImageStore):
    """The rows of all samples, on the device.

    Args:
        photos: the samples.
        prepare: makes a row of each.
        device: where they lie.
    """

    def __init__(
        self, photos: Sequence[Photo], prepare: RowPreprocess, device: torch.device
    ) -> None:
        super().__init__([], prepare.channels, device, limit_bytes=0)
        self.photos = photos
        rows = np.concatenate([prepare.input_of(photo) for photo in photos])
        self.rows = torch.from_numpy(rows).to(device)

    def describe(self) -> dict[str, Any]:
        """Where they lie, and their bytes."""
        held = self.rows.numel() * 4
        return {
            "photos": str(self.device),
            "decoded": len(self),
            "bytes": held,
            "limit_bytes": held,
        }


class RowSampler(CropSampler):
    """Draws batches of whole samples: a permutation of them an epoch."""

    def draw(self, step: int) -> Tensor:
        """The table of a step: the number of each sample."""
        return self._numbered([photo for photo, _ in self._drawn(step)])

    def draw_keys(self, keys: Sequence[tuple[int, int]]) -> Tensor:
        """The same of some samples."""
        return self._numbered([photo for photo, _ in keys])

    def _numbered(self, photos: Sequence[int]) -> Tensor:
        table = torch.zeros(len(photos), len(Column) + len(Extra))
        table[:, Extra.PHOTO] = torch.tensor(photos, dtype=torch.float32)
        return table

    def render(self, table: Tensor) -> Batch:
        """The rows of a table, with what is to be predicted of them."""
        assert isinstance(self._store, RowStore), "samples that are rows have a store of their own"
        photos = photos_of(table)
        rows = self._store.rows.index_select(0, photos)
        return Batch(rows, self._targets(table, self._options.crop), photos)

    def describe(self) -> dict[str, Any]:
        """Where the rows lie."""
        return {**self._store.describe(), "crops": "none: whole samples"}


def store_of(photos: Sequence[Photo], prepare: Preprocess, device: torch.device) -> ImageStore:
    """What a training keeps of its photos, or of its samples."""
    if isinstance(prepare, RowPreprocess):
        return RowStore(photos, prepare, device)
    return ImageStore(photos, prepare.channels, device)


def sampler_of(store: ImageStore) -> type[CropSampler]:
    """What draws batches from a store."""
    return RowSampler if isinstance(store, RowStore) else CropSampler


class AnswerTargets:
    """The teacher's outputs [B, 2, width] as rows, and the weight of each value.

    Weights make each output count alike, whatever its size and its scale: they are one over the
    number of outputs, the values of that one and their mean square over all samples.

    Args:
        photos: samples whose answers are known.
        device: where the answers lie.
    """

    def __init__(self, photos: Sequence[Photo], device: torch.device) -> None:
        names = photos[0].answer
        answers = [np.stack([photo.answer[name].ravel() for photo in photos]) for name in names]
        weights = [
            np.full(
                part.shape[1],
                1.0 / (len(answers) * part.shape[1] * max(float(np.square(part).mean()), 1e-12)),
                np.float32,
            )
            for part in answers
        ]
        self._answers = torch.from_numpy(np.concatenate(answers, axis=1)).to(device)
        self._weights = torch.from_numpy(np.concatenate(weights)).to(device)

    def __call__(self, table: Tensor, side: int) -> Tensor:
        """Those of the samples in `table` [B, P]."""
        found = self._answers.index_select(0, photos_of(table))
        return torch.stack([found, self._weights.expand_as(found)], dim=1)
