"""ResNet-18, ResNet-50 v1 and v1.5, and the residual stages that the reference detectors stand on.

Sources: He et al. 2015, arXiv:1512.03385, figure 5 and table 1 (blocks, depths, widths); v1.5 has
the stride of a bottleneck in its 3x3 convolution, v1 in the first 1x1; Xie et al. 2016,
arXiv:1611.05431, table 1 (ResNeXt-50 32x4d).
"""

from torch import Tensor, nn
from torch.nn import functional

DEPTHS = (3, 4, 6, 3)  # blocks a stage, of the 34- and the 50-layer network alike
DEPTHS_18 = (2, 2, 2, 2)


def convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    """Convolution without bias, centred; batch normalisation; ReLU where asked for."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)); the shortcut projects where the shape changes."""

    def __init__(self, branch: nn.Sequential, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = branch
        *_, scale, _ = branch.parameters()  # of the last normalisation
        # random branches as strong as their shortcuts would double the variance with each block
        nn.init.constant_(scale, 0.2)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else convolution(inputs, outputs, 1, stride, relu=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        result: Tensor = self.relu(self.branch(x) + shortcut)
        return result


def basic(inputs: int, outputs: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    branch = nn.Sequential(
        convolution(inputs, outputs, 3, stride),
        convolution(outputs, outputs, 3, relu=False),
    )
    return Residual(branch, inputs, outputs, stride)


def bottleneck(
    inputs: int, width: int, outputs: int, stride: int, groups: int, early: bool = False
) -> Residual:
    """1x1 to `width`, 3x3 with stride and groups, 1x1 to `outputs`; early: strided in the first."""
    branch = nn.Sequential(
        convolution(inputs, width, 1, stride if early else 1),
        convolution(width, width, 3, 1 if early else stride, groups),
        convolution(width, outputs, 1, relu=False),
    )
    return Residual(branch, inputs, outputs, stride)


def stem() -> nn.Sequential:
    """[N, 3, H, W] to [N, 64, H/4, W/4]."""
    return nn.Sequential(convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1))


def basic_stages(strides: tuple[int, ...], depths: tuple[int, ...] = DEPTHS) -> list[nn.Sequential]:
    """The first stages of ResNet-34, one a stride, after the stem: 64, 128, 256, 512 channels.

    Args:
        strides: of each stage.
        depths: blocks of each stage.
    """
    stages, inputs = [], 64
    for i, stride in enumerate(strides):
        outputs = 64 * 2**i
        rest = [basic(outputs, outputs, 1) for _ in range(depths[i] - 1)]
        stages.append(nn.Sequential(basic(inputs, outputs, stride), *rest))
        inputs = outputs
    return stages


def bottleneck_stages(width: int = 64, groups: int = 1, early: bool = False) -> list[nn.Sequential]:
    """The four stages of a 50-layer network after the stem: 256, 512, 1024, 2048 channels.

    Args:
        width: channels of the first stage's 3x3 convolutions; each later stage has twice as many.
        groups: of those convolutions.
        early: a stage's stride is in its first 1x1 convolution, as in v1.
    """
    stages, inputs = [], 64
    for i, depth in enumerate(DEPTHS):
        inner, outputs = width * 2**i, 256 * 2**i
        first = bottleneck(inputs, inner, outputs, 1 if i == 0 else 2, groups, early)
        rest = [bottleneck(outputs, inner, outputs, 1, groups) for _ in range(depth - 1)]
        stages.append(nn.Sequential(first, *rest))
        inputs = outputs
    return stages


class GlobalAverage(nn.Module):
    """The mean of each channel, as a pooling over the whole map.

    `nn.AdaptiveAvgPool2d` exports as a ReduceMean that onnx does not convert to opset 17.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C]."""
        return functional.avg_pool2d(x, x.shape[2:]).flatten(1)


def resnet18(classes: int = 1000) -> nn.Sequential:
    """ResNet-18: image [N, 3, H, W] to logits [N, classes]."""
    stages = basic_stages((1, 2, 2, 2), DEPTHS_18)
    return nn.Sequential(stem(), *stages, GlobalAverage(), nn.Linear(512, classes))


def resnet50(classes: int = 1000, early: bool = False) -> nn.Sequential:
    """ResNet-50 v1.5, or v1 with `early` strides: image [N, 3, H, W] to logits [N, classes]."""
    return nn.Sequential(
        stem(),
        *bottleneck_stages(early=early),
        GlobalAverage(),
        nn.Linear(2048, classes),
    )
