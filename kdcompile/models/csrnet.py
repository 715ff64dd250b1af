"""CSRNet (Li et al., CVPR 2018): crowd counting by a density map at stride 8.

Input [N, 3, H, W], RGB in 0..1 normalised with the ImageNet mean and deviation. Output
[N, 1, ceil(H/8), ceil(W/8)]: people per 8x8-pixel cell; the sum over a map is the count.
"""

from torch import Tensor, nn

FRONT_END = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
BACK_END = (512, 512, 512, 256, 128, 64)


def _stage(inputs: int, widths: tuple[int, ...], dilation: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, width in zip((inputs, *widths), widths, strict=False):
        convolution = nn.Conv2d(before, width, 3, padding=dilation, dilation=dilation)
        layers += [convolution, nn.ReLU()]
    return layers


class CSRNet(nn.Module):
    """VGG16's first ten convolutions in four stages, then six dilated ones, then a 1x1 output.

    Pooling rounds up, so the input's size need not be a multiple of 8.
    """

    def __init__(self) -> None:
        """Untrained weights."""
        super().__init__()
        front: list[nn.Module] = []
        inputs = 3
        for index, widths in enumerate(FRONT_END):
            if index:
                front.append(nn.MaxPool2d(2, 2, ceil_mode=True))
            front += _stage(inputs, widths, dilation=1)
            inputs = widths[-1]
        self.frontend = nn.Sequential(*front)
        self.backend = nn.Sequential(*_stage(inputs, BACK_END, dilation=2))
        self.output = nn.Conv2d(BACK_END[-1], 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        """People per cell."""
        density: Tensor = self.output(self.backend(self.frontend(image)))
        return density


def build() -> nn.Module:
    """The teacher's architecture; its weights are in the layout of the published VGG16 order."""
    return CSRNet()
