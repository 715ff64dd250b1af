"""RetinaNet on ResNeXt-50 32x4d, MLPerf inference's detector from v2.1, up to what its heads give.

Sources: Lin et al. 2017, arXiv:1708.02002, section 4 and figure 3 (heads, shared by all levels);
Lin et al. 2016, arXiv:1612.03144 (feature pyramid); classes, anchors and the level that P6 is made
from as in MLCommons' reference implementation, mlcommons/training, single_stage_detector.
"""

import torch
from reference_resnet import bottleneck_stages, stem
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = 256  # of every level of the pyramid
ANCHORS = 9  # a position: three sizes, three aspect ratios


class Pyramid(nn.Module):
    """Levels P3 to P7 from the last three stages of the backbone, all of 256 channels."""

    def __init__(self, inputs: tuple[int, int, int]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, CHANNELS, 1) for c in inputs)
        self.smooth = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1) for _ in inputs)
        self.p6 = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)
        self.p7 = nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of strides 8, 16, 32 to maps of strides 8, 16, 32, 64, 128."""
        inner: list[Tensor] = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for i in (1, 0):
            inner[i] = inner[i] + functional.interpolate(inner[i + 1], size=inner[i].shape[2:])
        levels = [smooth(x) for smooth, x in zip(self.smooth, inner, strict=True)]
        p6 = self.p6(levels[2])
        return [*levels, p6, self.p7(functional.relu(p6))]


class Head(nn.Module):
    """Four 3x3 convolutions with ReLU and a fifth that gives `values` an anchor."""

    def __init__(self, values: int) -> None:
        super().__init__()
        self.values = values
        tower: list[nn.Module] = []
        for _ in range(4):
            tower += [nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*tower, nn.Conv2d(CHANNELS, ANCHORS * values, 3, 1, 1))

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Maps [N, 256, H, W] to [N, sum of H * W * 9, values]."""
        rows = []
        for level in levels:
            x = self.layers(level)
            n, _, height, width = x.shape
            x = x.reshape(n, ANCHORS, self.values, height, width).permute(0, 3, 4, 1, 2)
            rows.append(x.reshape(n, -1, self.values))
        return torch.cat(rows, 1)


class RetinaNet(nn.Module):
    """Backbone, pyramid and the two heads.

    Args:
        classes: 264 of OpenImages in MLPerf.
        width: of the backbone's first grouped convolutions: 128 in 32 groups is ResNeXt-50 32x4d,
            64 in one group ResNet-50.
        groups: of those convolutions.
    """

    def __init__(self, classes: int = 264, width: int = 128, groups: int = 32) -> None:
        super().__init__()
        first, *later = bottleneck_stages(width, groups)
        self.early = nn.Sequential(stem(), first)
        self.stages = nn.ModuleList(later)
        self.pyramid = Pyramid((512, 1024, 2048))
        self.scores, self.boxes = Head(classes), Head(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, H, W] to logits [N, anchors, classes] and encoded boxes [N, anchors, 4]."""
        x = self.early(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        levels = self.pyramid(maps)
        return self.scores(levels), self.boxes(levels)
