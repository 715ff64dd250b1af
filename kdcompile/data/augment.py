"""Training crops: scaled, flipped and recoloured, with the density of exactly their points.

All randomness of a step comes from (seed, step), so a resumed run sees the crops that an
uninterrupted one would have seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from kdcompile.data.density import density_maps
from kdcompile.data.photo import Photo
from kdcompile.data.prepare import Preprocess
from kdcompile.spec import Distill


@dataclass(frozen=True)
class Batch:
    """images: float32 [B, C, s, s], normalised. density: float32 [B, 1, s/stride, s/stride]."""

    images: Tensor
    density: Tensor


class CropSampler:
    """Draws batches from photos that are decoded once and kept on the device as bytes."""

    def __init__(
        self,
        photos: Sequence[Photo],
        preprocess: Preprocess,
        options: Distill,
        stride: int,
        sigma: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self._photos, self._options, self._seed, self._device = photos, options, seed, device
        self._channels, self._stride, self._sigma = preprocess.channels, stride, sigma
        self._mean = torch.tensor(preprocess.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(preprocess.std, device=device).view(1, -1, 1, 1)
        self._decoded: dict[int, Tensor] = {}
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def batch(self, step: int) -> Batch:
        """The batch of a step; the same for the same seed."""
        size, side = self._options.batch, self._options.crop
        random = np.random.default_rng((self._seed, step)).random((size, 6))
        crops, points = zip(
            *(self._crop(self._index(step * size + i), random[i]) for i in range(size)),
            strict=True,
        )
        images = torch.stack(crops)
        if self._options.colour:
            images = self._recolour(images, random[:, 4:])
        valid = torch.stack([_valid_mask(side, crop, self._device) for crop in points])
        images = (images - self._mean) / self._std * valid
        maps = self._density([crop.points for crop in points], side)
        if self._options.flip:
            mirrored = torch.from_numpy(random[:, 3] < 0.5).to(self._device).view(-1, 1, 1, 1)
            images = torch.where(mirrored, images.flip(-1), images)
            maps = torch.where(mirrored, maps.flip(-1), maps)
        return Batch(images, maps)

    def _index(self, drawn: int) -> int:
        epoch, place = divmod(drawn, len(self._photos))
        if self._order[0] != epoch:
            generator = np.random.default_rng((self._seed, epoch, len(self._photos)))
            self._order = (epoch, generator.permutation(len(self._photos)))
        return int(self._order[1][place])

    def _image(self, index: int) -> Tensor:
        if index not in self._decoded:
            pixels = self._photos[index].pixels(self._channels)
            image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
            self._decoded[index] = image.to(self._device)
        return self._decoded[index]

    def _crop(self, index: int, random: NDArray[np.float64]) -> tuple[Tensor, "_Crop"]:
        """A [C, s, s] crop with values 0..1, zero where the photo does not reach."""
        side, image = self._options.crop, self._image(index)
        low, high = self._options.scale
        zoom = low * (high / low) ** random[0]
        wanted = round(side / zoom)
        window = [min(wanted, extent) for extent in image.shape[1:]]
        top, left = (
            int(draw * (extent - part + 1))
            for draw, extent, part in zip(random[1:3], image.shape[1:], window, strict=True)
        )
        height, width = (max(1, round(side * part / wanted)) for part in window)
        part = image[:, top : top + window[0], left : left + window[1]].float().div(255)
        if (height, width) != tuple(window):
            resized = interpolate(part[None], (height, width), mode="bilinear", align_corners=False)
            part = resized[0]
        crop = torch.zeros(image.shape[0], side, side, device=self._device)
        crop[:, :height, :width] = part
        factor = np.array([width / window[1], height / window[0]], np.float32)
        # a point on the far border belongs to the last pixel
        held = np.clip(
            self._photos[index].points, 0, np.array(image.shape[:0:-1], np.float32) - 0.01
        )
        points = (held - np.array([left, top], np.float32)) * factor
        inside = ((points >= 0) & (points < np.array([width, height], np.float32))).all(1)
        return crop, _Crop(points[inside], height, width)

    def _recolour(self, images: Tensor, random: NDArray[np.float64]) -> Tensor:
        draws = torch.from_numpy((2 * random - 1) * self._options.colour).float().to(self._device)
        brightness, contrast = (1 + draws).unbind(1)
        images = images * brightness.view(-1, 1, 1, 1)
        centre = images.mean((1, 2, 3), keepdim=True)
        return ((images - centre) * contrast.view(-1, 1, 1, 1) + centre).clamp(0, 1)

    def _density(self, points: Sequence[NDArray[np.float32]], side: int) -> Tensor:
        longest = max([1, *(len(p) for p in points)])
        padded = np.zeros((len(points), longest, 2), np.float32)
        mask = np.zeros((len(points), longest), bool)
        for row, found in enumerate(points):
            padded[row, : len(found)] = found
            mask[row, : len(found)] = True
        cells = (side // self._stride, side // self._stride)
        return density_maps(
            torch.from_numpy(padded).to(self._device),
            torch.from_numpy(mask).to(self._device),
            cells,
            self._stride,
            self._sigma,
        )


@dataclass(frozen=True)
class _Crop:
    points: NDArray[np.float32]
    height: int
    width: int


def _valid_mask(side: int, crop: _Crop, device: torch.device) -> Tensor:
    """1 where the photo is, 0 in the padding, so that padding is the mean colour."""
    mask = torch.zeros(1, side, side, device=device)
    mask[:, : crop.height, : crop.width] = 1
    return mask
