"""MobileNetV2. Source: Sandler et al. 2018, arXiv:1801.04381, table 2 and figure 4."""

from reference_resnet import GlobalAverage
from torch import Tensor, nn

STAGES = (  # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


def convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> list[nn.Module]:
    """Convolution without bias, centred; batch normalisation; ReLU6 where asked for."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return [*layers, nn.ReLU6(inplace=True)] if relu else layers


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise 3x3, 1x1 to fewer; added to its input where both agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.branch = nn.Sequential(
            *(convolution(inputs, inner, 1) if expansion > 1 else []),
            *convolution(inner, inner, 3, stride, groups=inner),
            *convolution(inner, outputs, 1, relu=False),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        made: Tensor = self.branch(x)
        return x + made if self.adds else made


def mobilenet_v2(classes: int = 1000) -> nn.Sequential:
    """MobileNetV2 at width 1: image [N, 3, H, W] to logits [N, classes]."""
    layers, inputs = convolution(3, 32, 3, 2), 32
    for expansion, outputs, blocks, stride in STAGES:
        for block in range(blocks):
            first = stride if block == 0 else 1
            layers.append(InvertedResidual(inputs, outputs, first, expansion))
            inputs = outputs
    head = [*convolution(inputs, 1280, 1), GlobalAverage(), nn.Linear(1280, classes)]
    return nn.Sequential(*layers, *head)
