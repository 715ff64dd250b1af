"""From pixels to the network's input: one definition for training, verification and the bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdcompile.core.ports import Ports

if TYPE_CHECKING:
    from kdcompile.data.photo import Photo

Padding = Literal["mean", "mirror"]
Input = NDArray[Any]  # float32 [1, C, h, w], or uint8 [1, h, w, C] where the network normalises


@dataclass(frozen=True)
class Frame:
    """Where a photo lies in a network's input; [height, width] in pixels each.

    With it goes what a task that imitates the teacher compares with: the teacher's own answer.

    Args:
        photo: of the photo itself, in which its points are given.
        seen: of the photo as the network saw it, scaled to fit.
        plane: of the input: the photo from the top left corner, padded right and below.
        answer: the teacher's outputs for it by name, where they are known.
        sample: its own arrays by name, where it has any.
        of: the photo with its annotations, where it is one that was annotated.
    """

    photo: tuple[int, int]
    seen: tuple[int, int]
    plane: tuple[int, int]
    answer: Mapping[str, NDArray[np.float32]] = field(
        default_factory=dict, compare=False, repr=False
    )
    sample: Mapping[str, NDArray[Any]] = field(default_factory=dict, compare=False, repr=False)
    of: "Photo | None" = field(default=None, compare=False, repr=False)

    def inside(self, height: int, width: int) -> NDArray[np.float32]:
        """The share of each cell that lies in the photo, float32 [height, width].

        1 within it, 0 in the padding. A cell across the border counts by its area: nothing tells
        which of its pixels the network saw the content in.

        Args:
            height: cells of a map that covers the whole input.
            width: cells of that map.
        """
        rows, columns = (
            np.clip(seen * cells / plane - np.arange(cells), 0.0, 1.0)
            for cells, seen, plane in zip((height, width), self.seen, self.plane, strict=True)
        )
        return np.outer(rows, columns).astype(np.float32)


@dataclass(frozen=True)
class Preprocess:
    """Normalisation and the sizes that the deployed network accepts.

    An image larger than `max_hw` is scaled down to fit, keeping its aspect; one smaller than
    `min_hw` is padded right and below. A fixed network has both equal. Where the network normalises
    by itself (`in_graph`) its input is what is left: the scaled and padded pixels.

    `padding` is the mean colour, or for a map over the image the photo mirrored at its border: a
    network goes on over the border as in the photo, where a flat area has features of its own that
    leak into it. `frame` says what part of a map is the photo's.
    """

    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_hw: tuple[int, int]
    max_hw: tuple[int, int]
    padding: Padding = "mean"  # of bundles that do not name it
    in_graph: bool = False

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Preprocess":
        """The value that `to_json` gave."""
        if INPUTS in value:
            inner = Preprocess.from_json(value["image"]) if value["image"] else None
            return RowPreprocess.of(Ports.from_json(value[INPUTS]), inner)
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return Preprocess(**plain)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the manifest; `in_graph` only where it is so."""
        told = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in told.items() if k != "in_graph" or v}

    def deployed(self, where: str) -> "Preprocess":
        """That of the deployed network, where `export.preprocess` is "host" or "in-graph"."""
        return replace(self, in_graph=where == "in-graph")

    def input_shape(self, shape: Sequence[int]) -> list[int]:
        """The shape of the network's input, where a float32 one's is [N, C, H, W]."""
        if not self.in_graph:
            return list(shape)
        batch, channels, *sides = shape
        return [batch, *sides, channels]

    def noise(self, shape: Sequence[int], seed: int) -> Input:
        """Random values as an input to time with; `shape` as of `input_shape`."""
        random, own = np.random.default_rng(seed), self.input_shape(shape)
        if self.in_graph:
            return random.integers(0, 256, own, dtype=np.uint8)
        return random.standard_normal(own, dtype=np.float32)

    def fitted(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image of this size is scaled to."""
        scale = min(1.0, self.max_hw[0] / height, self.max_hw[1] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))

    def frame(self, height: int, width: int) -> Frame:
        """Where an image of this size lies in the network's input."""
        seen = self.fitted(height, width)
        plane = max(self.min_hw[0], seen[0]), max(self.min_hw[1], seen[1])
        return Frame((height, width), seen, plane)

    def input_of(self, photo: "Photo") -> Input:
        """A photo's input, float32 [1, C, h, w]; uint8 [1, h, w, C] if `in_graph`.

        Raises:
            KDError: it cannot be read.
        """
        return self(photo.pixels(self.channels))

    def view(self, photo: "Photo") -> tuple[Input, Frame]:
        """A photo's input, and where the photo lies in it.

        Raises:
            KDError: it cannot be read.
        """
        pixels = photo.pixels(self.channels)
        return self(pixels), replace(self.frame(*pixels.shape[:2]), of=photo)

    def kept(self, photo: "Photo") -> NDArray[Any]:
        """What a bundle keeps of a photo, from which this makes its input: uint8 [H, W, C]."""
        return self.scaled(photo.pixels(self.channels))

    def scaled(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 [H, W, C] scaled to fit, neither normalised nor padded."""
        fitted = self.fitted(*pixels.shape[:2])
        if fitted == pixels.shape[:2]:
            return pixels
        image = Image.fromarray(pixels.squeeze(2) if self.channels == 1 else pixels)
        found = np.asarray(image.resize(fitted[::-1], Image.Resampling.BILINEAR, reducing_gap=3.0))
        return found.reshape(*fitted, self.channels)

    def __call__(self, pixels: NDArray[np.uint8]) -> Input:
        """uint8 [H, W, C] to normalised float32 [1, C, h, w]; uint8 [1, h, w, C] if `in_graph`."""
        frame = self.frame(*pixels.shape[:2])
        pixels = self.scaled(pixels)
        pad = [(0, whole - have) for whole, have in zip(frame.plane, frame.seen, strict=True)]
        mode: Any = {"mean": "constant", "mirror": "symmetric"}[self.padding]
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        if self.in_graph:
            whole = np.pad(pixels, (*pad, (0, 0)), mode=mode)
            if mode == "constant":  # the nearest colour to the mean that pixels have
                outside = np.ones(whole.shape[:2], bool)
                outside[: frame.seen[0], : frame.seen[1]] = False
                whole[outside] = np.clip(np.rint(mean * 255), 0, 255).astype(np.uint8)
            return np.ascontiguousarray(whole[None])
        image_chw = ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)
        padded = np.pad(image_chw, ((0, 0), *pad), mode=mode)
        return np.ascontiguousarray(padded[None], dtype=np.float32)


NO_PORTS = Ports(())
INPUTS = "inputs"  # of preprocess.json, where samples are rows


@dataclass(frozen=True)
class RowPreprocess(Preprocess):
    """From a sample of named tensors, or a photo, to the row that stands for a network's inputs.

    Args:
        ports: the network's inputs.
        image: the preprocessing of photos, where they are what the network takes.
    """

    ports: Ports = NO_PORTS
    image: Preprocess | None = None

    @classmethod
    def of(cls, ports: Ports, image: Preprocess | None = None) -> "RowPreprocess":
        """Of samples of some inputs, or of photos that are prepared by `image`."""
        blank = image or Preprocess(1, (0.0,), (1.0,), (1, 1), (1, 1))
        return cls(**vars(blank), ports=ports, image=image)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for the manifest."""
        image = None if self.image is None else self.image.to_json()
        return {INPUTS: self.ports.to_json(), "image": image}

    def __call__(self, given: NDArray[Any]) -> NDArray[np.float32]:
        """A photo's uint8 [H, W, C] as a row [1, width]; a row as it is."""
        is_photo = given.ndim == 3 and self.image is not None
        found = self.image(given) if is_photo and self.image is not None else given
        return np.asarray(found, np.float32).reshape(1, -1)

    def input_of(self, photo: "Photo") -> NDArray[np.float32]:
        """The row [1, width] of a sample or photo.

        Raises:
            KDError: those of `Ports.pack`; the photo cannot be read.
        """
        if self.image is None:
            return self.ports.pack(photo.tensors, photo.name)
        return self(photo.pixels(self.channels))

    def view(self, photo: "Photo") -> tuple[NDArray[np.float32], Frame]:
        """The row, and the teacher's answer where it is known."""
        frame = Frame((1, 1), (1, 1), (1, 1), photo.answer, photo.tensors, photo)
        return self.input_of(photo), frame

    def kept(self, photo: "Photo") -> NDArray[Any]:
        """The row, or the photo's pixels, scaled."""
        return super().kept(photo) if self.image is not None else self.input_of(photo)
