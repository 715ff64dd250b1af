"""Decoded images: as bytes on the device where they fit, else in host memory."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdcompile.data.photo import Photo

Ints = NDArray[np.int64]


class ImageStore:
    """Photos that are decoded once, for any number of samplers.

    On a GPU all are decoded at once, and lie there in one buffer if they fit. Else they stay in
    host memory; on a CPU each is decoded when it is first drawn.

    Args:
        photos: what to decode.
        channels: of a photo, 1 or 3 for image files.
        device: where crops are made.
        limit_bytes: the most that the photos may take there. By default half of a GPU's free
            memory, and 0 on a CPU, which reads host memory as fast.

    photos: what was given.
    bytes: uint8 [bytes] on the device, photos as [H, W, C] one after the other; None where they
    are in host memory.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        channels: int,
        device: torch.device,
        limit_bytes: int | None = None,
    ) -> None:
        self.channels, self.device = channels, device
        self.bytes: Tensor | None = None
        self.photos = photos
        self._decoded: dict[int, NDArray[np.uint8]] = {}
        self._sizes: Ints = np.zeros((len(photos), 2), np.int64)
        self._starts: Ints = np.zeros(len(photos), np.int64)
        if limit_bytes is None:
            is_gpu = device.type == "cuda"
            limit_bytes = torch.cuda.mem_get_info(device)[0] // 2 if is_gpu else 0
        self._limit_bytes = limit_bytes
        if limit_bytes or device.type == "cuda":
            self._load(np.arange(len(photos)))
            if sum(pixels.nbytes for pixels in self._decoded.values()) <= limit_bytes:
                self._move()

    def __len__(self) -> int:
        return len(self.photos)

    def sizes(self, photos: Ints) -> Ints:
        """Height and width [N, 2] of some photos [N], decoding those that are not yet."""
        self._load(photos)
        return self._sizes[photos]

    def starts(self, photos: Ints) -> Ints:
        """Where photos [N] begin in `bytes`, in pixels."""
        return self._starts[photos]

    def pixels(self, photo: int) -> NDArray[np.uint8]:
        """A photo [H, W, C] in host memory."""
        return self._decoded[photo]

    def most_pixels(self, side: int) -> int:
        """The most pixels of a window of up to side x side in the photos decoded so far."""
        return int(np.minimum(self._sizes, side).prod(1).max())

    def describe(self) -> dict[str, Any]:
        """Where the photos lie, how many are decoded, their bytes, and the limit on the device."""
        host = sum(pixels.nbytes for pixels in self._decoded.values())
        return {
            "photos": "host memory" if self.bytes is None else str(self.device),
            "decoded": len(self._decoded) if self.bytes is None else len(self),
            "bytes": host if self.bytes is None else self.bytes.numel(),
            "limit_bytes": self._limit_bytes,
        }

    def _load(self, photos: Ints) -> None:
        if self.bytes is not None:
            return
        missing = [int(i) for i in np.unique(photos) if int(i) not in self._decoded]
        if not missing:
            return
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for i, pixels in zip(missing, pool.map(self._decode, missing), strict=True):
                self._decoded[i] = pixels
                self._sizes[i] = pixels.shape[:2]

    def _decode(self, photo: int) -> NDArray[np.uint8]:
        return np.ascontiguousarray(self.photos[photo].pixels(self.channels))

    def _move(self) -> None:
        extents = self._sizes.prod(1)
        ends = np.cumsum(extents)
        self._starts = ends - extents
        flat = torch.empty(int(ends[-1]) * self.channels, dtype=torch.uint8, device=self.device)
        for i, (start, end) in enumerate(zip(self._starts, ends, strict=True)):
            pixels = self._decoded.pop(i)  # both copies at once may be more than the host has
            pixels = pixels if pixels.flags.writeable else pixels.copy()  # as torch wants it
            part = flat[start * self.channels : end * self.channels]
            part.copy_(torch.from_numpy(pixels.reshape(-1)))
        self.bytes = flat
