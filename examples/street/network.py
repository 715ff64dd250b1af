"""The teacher: a residual network with a top-down path, whose maps are logits at stride 4.

Input [N, 3, H, W], RGB in 0..1 normalised by the spec's mean and std, H and W multiples of 16.
Output [N, 11, H/4, W/4]: logits of the classes.
"""

import torch
from torch import Tensor, nn

CLASSES = 11
STEM, FINE, MIDDLE, COARSE = 48, 80, 112, 160  # channels at strides 2, 4, 8 and 16
DILATIONS = (1, 2, 4)  # at stride 16: a street is told by what is around


def conv(
    inputs: int, outputs: int, stride: int = 1, kernel: int = 3, dilation: int = 1
) -> nn.Sequential:
    """A convolution and its batch normalisation."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        """Untrained weights."""
        super().__init__()
        self.body = nn.Sequential(
            conv(inputs, outputs, stride), nn.ReLU(), conv(outputs, outputs, dilation=dilation)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = conv(inputs, outputs, stride, kernel=1)
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """The sum of both ways, at least 0."""
        total: Tensor = self.relu(self.body(features) + self.shortcut(features))
        return total


class Street(nn.Module):
    """Stages at strides 4, 8 and 16; each is added to the finer one before, from the last on."""

    def __init__(self) -> None:
        """Untrained weights."""
        super().__init__()
        self.stem = nn.Sequential(conv(3, STEM, 2), nn.ReLU(), conv(STEM, FINE, 2), nn.ReLU())
        self.fine = nn.Sequential(Block(FINE, FINE), Block(FINE, FINE))
        self.middle = nn.Sequential(Block(FINE, MIDDLE, 2), Block(MIDDLE, MIDDLE))
        first, second, third = DILATIONS
        self.coarse = nn.Sequential(
            Block(MIDDLE, COARSE, 2, dilation=first),
            Block(COARSE, COARSE, dilation=second),
            Block(COARSE, COARSE, dilation=third),
        )
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.to_middle = conv(COARSE, MIDDLE, kernel=1)
        self.at_middle = nn.Sequential(conv(MIDDLE, MIDDLE), nn.ReLU())
        self.to_fine = conv(MIDDLE, FINE, kernel=1)
        self.at_fine = nn.Sequential(conv(FINE, FINE), nn.ReLU())
        self.output = nn.Conv2d(FINE, CLASSES, 1)

    def forward(self, image: Tensor) -> Tensor:
        """The logits."""
        fine = self.fine(self.stem(image))
        middle = self.middle(fine)
        merged = torch.relu(middle + self.up(self.to_middle(self.coarse(middle))))
        merged = torch.relu(fine + self.up(self.to_fine(self.at_middle(merged))))
        logits: Tensor = self.output(self.at_fine(merged))
        return logits


def build() -> nn.Module:
    """The untrained teacher; `teacher.safetensors` holds its weights."""
    return Street()
