"""Training crops: scaled, flipped and recoloured on the device, from one small table a step.

All randomness of a step comes from (seed, step), so a resumed run sees the crops that an
uninterrupted one would have seen. Where views recur, a crop's comes from (seed, photo, view).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompile.config.distill import Distill
from kdcompile.core.store import digest
from kdcompile.data.images import ImageStore
from kdcompile.data.photo import Photo
from kdcompile.data.preprocess import Preprocess
from kdcompile.data.targets import DensityTargets, Extra, Targets, photos_of
from kdcompile.kernels._runtime import ran
from kdcompile.kernels.crop_augment import SPLIT, Column, crop_augment

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
HEAD = 64  # bytes of a row's columns for each channel: pixels behind them start at a whole pixel
IN_CACHE = 1 << 18  # values that a CPU makes at once: more would fall out of its cache
DRAWS = 6  # random numbers a crop: zoom, top, left, flip, brightness, contrast


@dataclass(frozen=True)
class Batch:
    """images: [B, C, s, s], normalised, float32 unless the sampler's `dtype` says otherwise.

    Crops without labels come last: `target` and `photo` are of those before them alone.

    target: as the sampler's `Targets` make it. photo: int64 [B], whose crops they are. inside: of
    maps, float32 [B, 1, h, w]: the share of each cell that lies in the photo, and not in what a
    crop larger than it is padded with.
    """

    images: Tensor
    target: Tensor
    photo: Tensor
    inside: Tensor | None = None

    @property
    def labelled(self) -> int:
        """How many crops have labels."""
        return len(self.target)

    def with_labels(self) -> "Batch":
        """Those alone."""
        own = None if self.inside is None else self.inside[: self.labelled]
        return Batch(self.images[: self.labelled], self.target, self.photo, own)

    def without_labels(self) -> "Batch":
        """The others, of which nothing is known."""
        rest = None if self.inside is None else self.inside[self.labelled :]
        return Batch(self.images[self.labelled :], self.target[:0], self.photo[:0], rest)

    def beside(self, others: "Batch") -> "Batch":
        """These crops, and others without labels after them."""
        shown = [part.inside for part in (self, others) if part.inside is not None]
        inside = torch.cat(shown) if len(shown) == 2 else None
        images = torch.cat([self.images, others.images])
        return Batch(images, self.target, self.photo, inside)


class CropSampler:
    """Draws batches of square crops.

    Args:
        photos: to crop; each is drawn once an epoch.
        preprocess: channels and normalisation.
        options: batch, crop, scale, flip, colour, views.
        targets: makes what is to be predicted.
        seed: of all draws.
        device: where crops are made.
        shard: (rank, world). A step's crops are world * batch, of which rank takes its part: the
            same crops as one process draws with the world-fold batch.
        store: the decoded photos, to be shared between samplers; by default its own.

    dtype: of the images; may be set.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        preprocess: Preprocess,
        options: Distill,
        targets: Targets,
        seed: int,
        device: torch.device,
        shard: tuple[int, int] = (0, 1),
        store: ImageStore | None = None,
    ) -> None:
        self.dtype = torch.float32
        self._options, self._targets, self._seed, self._device = options, targets, seed, device
        self._preprocess, self._shard = preprocess, shard
        self._names = [photo.name for photo in photos]
        self._store = store or ImageStore(photos, preprocess.channels, device)
        self._mean = torch.tensor(preprocess.mean, device=device)
        self._std = torch.tensor(preprocess.std, device=device)
        self._order: tuple[int, Ints] = (-1, np.zeros(0, np.int64))

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same for the same seed."""
        return self.render(self.sent(self.draw(step)))

    def sent(self, table: Tensor) -> Tensor:
        """A table on the device."""
        return table.to(self._device, non_blocking=True)

    def targets_of(self, step: int) -> Tensor:
        """The targets of a step's batch alone."""
        return self._targets(self.sent(self.draw(step)), self._options.crop)

    def draw(self, step: int) -> Tensor:
        """The table [B, P] of a step's crops, float32 in host memory, pinned for a GPU.

        The same shape at every step. Where the photos are not on the device the crops' bytes follow
        their columns, in the same rows. On a CPU P may differ between steps then.
        """
        return self._tabled([photo for photo, _ in self._drawn(step)], self._random(step))

    def draw_keys(self, keys: Sequence[tuple[int, int]]) -> Tensor:
        """The table of some recurring crops, (photo, view) each; any number of them."""
        return self._tabled([photo for photo, _ in keys], self._recurring(keys))

    def _tabled(self, photos: Sequence[int], random: Floats) -> Tensor:
        columns, corners = self._columns(np.array(photos, np.int64), random)
        if self._store.bytes is not None:
            table = self._table(len(photos), 0)
        else:
            table = self._table(len(photos), self._room(columns))
            self._stage(table.numpy(), columns, corners)
        table[:, : len(Column) + len(Extra)] = torch.from_numpy(columns)
        return table

    def each_photo(self) -> Iterator[Batch]:
        """One crop of every photo in batches, the last of which may be smaller; views recur."""
        for first in range(0, len(self._names), self._options.batch):
            few = range(first, min(first + self._options.batch, len(self._names)))
            yield self.render(self.sent(self.draw_keys([(photo, 0) for photo in few])))

    def render(self, table: Tensor) -> Batch:
        """The batch of a table on the device; waits for nothing and can be captured there."""
        source, side = self._store.bytes, self._options.crop
        if source is None:
            source = table.view(torch.uint8).view(-1)
        values, at_once = side * side * self._store.channels, len(table)
        if not table.is_cuda:
            at_once = max(IN_CACHE // values, 1)
        colour = self._options.colour > 0
        parts = [
            crop_augment(source, part, side, self._mean, self._std, colour=colour, dtype=self.dtype)
            for part in (table[i : i + at_once] for i in range(0, len(table), at_once))
        ]
        images = parts[0] if len(parts) == 1 else torch.cat(parts)
        images = images.contiguous(memory_format=torch.channels_last)
        own = self._targets
        inside = own.inside(table, side) if isinstance(own, DensityTargets) else None
        return Batch(images, self._targets(table, side), photos_of(table), inside)

    def keys(self, step: int) -> list[tuple[int, int]] | None:
        """(photo, view) of each crop of a step where views recur, else None."""
        if not self._options.views:
            return None
        return [(photo, epoch % self._options.views) for photo, epoch in self._drawn(step)]

    @property
    def augmentation(self) -> str:
        """Hash of all that decides the crop of (photo, view) but the photos' files."""
        names = ("crop", "scale", "flip", "colour", "views")
        decides = {name: getattr(self._options, name) for name in names}
        decides |= {"seed": self._seed, "dtype": str(self.dtype), "photos": self._names}
        decides |= {"mean": self._preprocess.mean, "std": self._preprocess.std}
        return digest(decides)

    def describe(self) -> dict[str, Any]:
        """Where the photos lie, their bytes, and which implementation made the last crops."""
        return {**self._store.describe(), "crops": ran().get("crop_augment", "none yet")}

    def _drawn(self, step: int) -> list[tuple[int, int]]:
        """Photo and epoch of each of this process's crops."""
        rank, world = self._shard
        first = (step * world + rank) * self._options.batch
        return [self._index(first + i) for i in range(self._options.batch)]

    def _index(self, drawn: int) -> tuple[int, int]:
        epoch, place = divmod(drawn, len(self._names))
        order = self._order  # as one: another thread may draw ahead
        if order[0] != epoch:
            generator = np.random.default_rng((self._seed, epoch, len(self._names)))
            order = self._order = (epoch, generator.permutation(len(self._names)))
        return int(order[1][place]), epoch

    def _random(self, step: int) -> Floats:
        """Draws [B, DRAWS] in 0..1."""
        keys = self.keys(step)
        if keys is not None:
            return self._recurring(keys)
        (rank, world), size = self._shard, self._options.batch
        every = np.random.default_rng((self._seed, step)).random((size * world, DRAWS))
        return every[rank * size : (rank + 1) * size]

    def _recurring(self, keys: Sequence[tuple[int, int]]) -> Floats:
        """Draws of (photo, view) crops; the last number keeps them apart from an order's."""
        own = [np.random.default_rng((self._seed, *key, 1)).random(DRAWS) for key in keys]
        return np.stack(own)

    def _columns(self, photos: Ints, random: Floats) -> tuple[NDArray[np.float32], Ints]:
        """The rows' columns, and the windows' top left corners [B, 2]."""
        side = self._options.crop
        low, high = self._options.scale
        wanted = np.maximum(np.rint(side / (low * (high / low) ** random[:, :1])), 1)
        extents = self._store.sizes(photos)
        windows = np.minimum(wanted, extents).astype(np.int64)
        corners = (random[:, 1:3] * (extents - windows + 1)).astype(np.int64)
        shown = np.maximum(np.rint(side * windows / wanted), 1)
        rows = np.zeros((len(photos), len(Column) + len(Extra)), np.float32)
        first = self._store.starts(photos) + corners[:, 0] * extents[:, 1] + corners[:, 1]
        rows[:, Column.HIGH], rows[:, Column.LOW] = first // SPLIT, first % SPLIT
        rows[:, Column.PITCH] = extents[:, 1]
        rows[:, Column.WINDOW_H : Column.WINDOW_W + 1] = windows
        rows[:, Column.HEIGHT : Column.WIDTH + 1] = shown
        rows[:, Column.FLIP] = self._options.flip & (random[:, 3] < 0.5)
        rows[:, Column.BRIGHTNESS : Column.CONTRAST + 1] = (
            1 + (2 * random[:, 4:] - 1) * self._options.colour
        )
        rows[:, Extra.PHOTO] = photos
        rows[:, Extra.TOP : Extra.LEFT + 1] = corners
        rows[:, Extra.PHOTO_H : Extra.PHOTO_W + 1] = extents
        return rows, corners

    def _room(self, columns: NDArray[np.float32]) -> int:
        """Pixels of a window at most: on a GPU of any, for its tables have one shape."""
        if self._device.type == "cuda":
            widest = round(self._options.crop / self._options.scale[0])
            return self._store.most_pixels(widest)
        return int(columns[:, Column.WINDOW_H : Column.WINDOW_W + 1].prod(1).max())

    def _table(self, rows: int, pixels: int) -> Tensor:
        """An unwritten table with room for so many pixels in each of its rows.

        Its memory is new: PyTorch keeps pinned memory until the copies from it are done.
        """
        channels = self._preprocess.channels
        width = (HEAD + -(-pixels // 4) * 4) * channels // 4
        pinned = self._device.type == "cuda"
        return torch.empty((rows, width), pin_memory=pinned)

    def _stage(
        self, table: NDArray[np.float32], columns: NDArray[np.float32], corners: Ints
    ) -> None:
        """Put each window's bytes into its row, and where they lie into the columns."""
        channels = self._preprocess.channels
        rows = table.view(np.uint8)
        pixels = rows.shape[1] // channels
        sizes = columns[:, Column.WINDOW_H : Column.WINDOW_W + 1].astype(np.int64)
        for i, ((top, left), (height, width)) in enumerate(zip(corners, sizes, strict=True)):
            photo = self._store.pixels(int(columns[i, Extra.PHOTO]))
            room = rows[i, HEAD * channels :][: height * width * channels]
            room.reshape(height, width, channels)[:] = photo[
                top : top + height, left : left + width
            ]
            first = i * pixels + HEAD
            columns[i, Column.HIGH], columns[i, Column.LOW] = divmod(first, SPLIT)
        columns[:, Column.PITCH] = sizes[:, 1]
