"""The networks of `bisect_faults.py` in each precision, and its images."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto
from safetensors.torch import load_file
from torch import Tensor, nn

import kdcompile.examples.digits as digits
from kdcompile.calib.calibrate import calibrate
from kdcompile.calib.qdq import insert_qdq
from kdcompile.data.preprocess import Preprocess
from kdcompile.examples.digits.canvases import photos as canvases
from kdcompile.examples.digits.model import build
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.onnx_graph.fp16 import to_fp16

FOLDER = Path(digits.__file__).parent
PREPARE = Preprocess(1, (0.09,), (0.155,), (64, 64), (64, 64))
BLOCKS, WIDTH = 6, 16
Floats = NDArray[np.float32]


class Norm(nn.Module):
    """Layer normalisation over the channels of [N, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """The same shape."""
        normed: Tensor = self.norm(image.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return normed


class Block(nn.Module):
    """Two convolutions beside an identity and a pooled branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = Norm(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.ReLU()
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.side = nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(width, width, 1))

    def forward(self, image: Tensor) -> Tensor:
        """The same shape."""
        normed = self.norm(image)
        found: Tensor = image + self.second(self.act(self.first(normed))) + self.side(normed)
        return found


class Residual(nn.Module):
    """A stem of stride 2, blocks, and a map of one positive channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, 2, 1), nn.ReLU())
        self.blocks = nn.Sequential(*(Block(WIDTH) for _ in range(BLOCKS)))
        self.head = nn.Sequential(nn.Conv2d(WIDTH, 1, 1), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """[N, 1, H, W] to [N, 1, H / 2, W / 2]."""
        found: Tensor = self.head(self.blocks(self.stem(image)))
        return found


def residual() -> nn.Module:
    """Untrained, the same at every call."""
    torch.manual_seed(0)
    return Residual().eval()


def counter() -> nn.Module:
    """The digits example's trained teacher."""
    model = build()
    model.load_state_dict(load_file(FOLDER / "teacher.safetensors"))
    return model.eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {"digits teacher": counter, "residual": residual}


def photos(number: int = 16) -> list[NDArray[np.float32]]:
    """Canvases of the validation split as inputs, float32 [1, 1, 64, 64] each."""
    return [PREPARE(photo.pixels(1)) for photo in canvases(FOLDER, f"val:{number}")]


def exported(name: str) -> tuple[ModelProto, list[Floats]]:
    """A network's ONNX file, and its images."""
    images = photos()
    with tempfile.TemporaryDirectory() as folder:
        shape = list(images[0].shape)
        path = Path(folder) / "network.onnx"
        return onnx_from_module(NETWORKS[name](), path, (shape, shape, shape)), images


def in_precision(model: ModelProto, precision: str, images: Sequence[Floats]) -> ModelProto:
    """The network in a precision, by the same code as a build."""
    if precision == "fp16":
        return to_fp16(model)
    if precision == "int8":
        table = calibrate(model, "", images, [("canvas", "")], "minmax")
        return insert_qdq(model, table)
    return copied(model)


def copied(model: ModelProto) -> ModelProto:
    """A copy to be changed."""
    result = ModelProto()
    result.CopyFrom(model)
    return result
