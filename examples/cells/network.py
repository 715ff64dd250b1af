"""The teachers: a residual network with a top-down path, whose maps are boxes or a density.

Input [N, 3, H, W], RGB in 0..1 normalised by the spec's mean and std, H and W multiples of 16.

Output of the detector [N, 7, H/8, W/8]: logits of the three classes that a cell of the map is the
centre of a box, then the box's left, top, right and bottom as distances from that centre:
8 * exp(value) pixels. Output of the counter [N, 1, H/8, W/8]: red cells in each cell of the map.
"""

import math

import torch
from torch import Tensor, nn

CLASSES, SIDES, STRIDE = 3, 4, 8
STEM, FINE, MIDDLE, COARSE = 48, 80, 112, 128  # channels at strides 2, 4, 8 and 16
RARE = 0.01  # probability of a centre that the untrained network gives
EXTENT = 40.0  # pixels from a centre to a side that the untrained network gives


def conv(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """A convolution and its batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        """Untrained weights."""
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs, stride), nn.ReLU(), conv(outputs, outputs))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = conv(inputs, outputs, stride, kernel=1)
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """The sum of both ways, at least 0."""
        total: Tensor = self.relu(self.body(features) + self.shortcut(features))
        return total


class Cells(nn.Module):
    """Stages at strides 4, 8 and 16; the last is added to the one before, which the head reads."""

    def __init__(self, outputs: int) -> None:
        """Untrained weights."""
        super().__init__()
        self.stem = nn.Sequential(conv(3, STEM, 2), nn.ReLU(), conv(STEM, FINE, 2), nn.ReLU())
        self.fine = nn.Sequential(Block(FINE, FINE), Block(FINE, FINE))
        self.middle = nn.Sequential(Block(FINE, MIDDLE, 2), Block(MIDDLE, MIDDLE))
        self.coarse = nn.Sequential(
            Block(MIDDLE, COARSE, 2), Block(COARSE, COARSE), Block(COARSE, COARSE)
        )
        self.lateral = conv(COARSE, MIDDLE, kernel=1)
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.head = nn.Sequential(conv(MIDDLE, MIDDLE), nn.ReLU(), conv(MIDDLE, MIDDLE), nn.ReLU())
        self.output = nn.Conv2d(MIDDLE, outputs, 1)
        nn.init.normal_(self.output.weight, std=0.01)

    def forward(self, image: Tensor) -> Tensor:
        """The maps."""
        middle = self.middle(self.fine(self.stem(image)))
        merged = torch.relu(middle + self.up(self.lateral(self.coarse(middle))))
        maps: Tensor = self.output(self.head(merged))
        return maps


def detector() -> nn.Module:
    """The untrained detector, which finds few boxes of 80 pixels; see `detector.safetensors`."""
    network = Cells(CLASSES + SIDES)
    bias = network.output.bias
    assert bias is not None, "the output layer has a bias"
    with torch.no_grad():
        bias[:CLASSES] = math.log(RARE / (1 - RARE))
        bias[CLASSES:] = math.log(EXTENT / STRIDE)
    return network


def counter() -> nn.Module:
    """The untrained counter; `counter.safetensors` holds its weights."""
    network = Cells(1)
    assert network.output.bias is not None, "the output layer has a bias"
    nn.init.zeros_(network.output.bias)
    return network
