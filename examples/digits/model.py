"""The example's teacher: a small density network at stride 4.

Input [N, 1, H, W], grey in 0..1 normalised to mean 0 and deviation 1. Output [N, 1, H/4, W/4]:
digits per 4x4-pixel cell; the sum over a map is the count.
"""

from torch import Tensor, nn


class DigitCounter(nn.Module):
    """A strided stage, one at a quarter of the size, a dilated one, a 1x1 output.

    No wide layer works at full size: there a Jetson is bound by memory, and no student is faster.
    """

    def __init__(self) -> None:
        """Untrained weights."""
        super().__init__()
        self.features = nn.Sequential(
            *_pair(1, 32, 64, stride=2),
            nn.MaxPool2d(2),
            *_pair(64, 96, 96),
            *_pair(96, 96, 96, dilation=2),
        )
        self.output = nn.Conv2d(96, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Digits per cell."""
        density: Tensor = self.output(self.features(image))
        return density


def _pair(
    inputs: int, first: int, second: int, stride: int = 1, dilation: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, first, 3, stride=stride, padding=dilation, dilation=dilation),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, padding=dilation, dilation=dilation),
        nn.ReLU(),
    ]


def build() -> nn.Module:
    """The untrained teacher; `teacher.safetensors` holds its weights."""
    return DigitCounter()
