"""The example's teacher: a heat map of each key point at a quarter of the photo's side."""

from torch import nn

POINTS, WIDTH = 4, 32


def build() -> nn.Module:
    """The untrained teacher: [N, 3, h, w] to logits [N, 4, h/4, w/4]."""
    layers: list[nn.Module] = []
    inputs = 3
    for width, stride, dilation in (
        (WIDTH, 2, 1),
        (WIDTH, 1, 1),
        (2 * WIDTH, 2, 1),
        (2 * WIDTH, 1, 1),
        (2 * WIDTH, 1, 2),
        (2 * WIDTH, 1, 4),
        (2 * WIDTH, 1, 1),
    ):
        layers += [
            nn.Conv2d(inputs, width, 3, stride, padding=dilation, dilation=dilation, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        inputs = width
    return nn.Sequential(*layers, nn.Conv2d(inputs, POINTS, 1))
