"""The two SSD detectors of MLPerf inference v0.5 to v2.0, up to what their heads give.

Sources: Liu et al. 2015, arXiv:1512.02325 (SSD); Howard et al. 2017, arXiv:1704.04861, table 1
(MobileNet v1); numbers of channels and of anchors and the strides as in MLCommons' reference
implementations, mlcommons/inference, vision/classification_and_detection.
"""

import torch
from reference_resnet import basic_stages, stem
from torch import Tensor, nn
from torch.nn import functional

Predictions = tuple[Tensor, Tensor]


class SameConvolution(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: an odd pixel goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C', ceil(H / stride), ceil(W / stride)]."""
        size, stride = self.kernel_size[0], self.stride[0]
        around: list[int] = []
        for extent in (x.shape[3], x.shape[2]):
            total = max((-(-extent // stride) - 1) * stride + size - extent, 0)
            around += [total // 2, total - total // 2]
        return super().forward(functional.pad(x, around) if any(around) else x)


def relu6(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """SAME convolution without bias, batch normalisation, ReLU6."""
    return nn.Sequential(
        SameConvolution(inputs, outputs, size, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Depthwise 3x3, then 1x1."""
    return nn.Sequential(relu6(inputs, inputs, 3, stride, groups=inputs), relu6(inputs, outputs, 1))


class SsdMobileNet(nn.Module):
    """SSD on MobileNet v1: six maps, 19, 10, 5, 3, 2 and 1 pixels wide at 300x300."""

    channels, anchors = (512, 1024, 512, 256, 256, 128), (3, 6, 6, 6, 6, 6)

    def __init__(self, classes: int = 91) -> None:
        super().__init__()
        self.classes = classes
        first = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5]
        layers, inputs = [relu6(3, 32, 3, 2)], 32
        for outputs, stride in first:
            layers.append(separable(inputs, outputs, stride))
            inputs = outputs
        shallow = nn.Sequential(*layers)
        deep = nn.Sequential(separable(512, 1024, 2), separable(1024, 1024, 1))
        extras = [
            nn.Sequential(relu6(inputs, inner, 1), relu6(inner, 2 * inner, 3, 2))
            for inputs, inner in ((1024, 256), (512, 128), (256, 128), (256, 64))
        ]
        self.levels = nn.ModuleList([shallow, deep, *extras])
        self.scores = nn.ModuleList(
            nn.Conv2d(c, a * classes, 1) for c, a in zip(self.channels, self.anchors, strict=True)
        )
        self.boxes = nn.ModuleList(
            nn.Conv2d(c, a * 4, 1) for c, a in zip(self.channels, self.anchors, strict=True)
        )

    def forward(self, x: Tensor) -> Predictions:
        """[N, 3, H, W] to logits [N, anchors, classes] and encoded boxes [N, anchors, 4]."""
        scores, boxes = [], []
        for level, score, box in zip(self.levels, self.scores, self.boxes, strict=True):
            x = level(x)
            scores.append(_rows(score(x), self.classes))
            boxes.append(_rows(box(x), 4))
        return torch.cat(scores, 1), torch.cat(boxes, 1)


def _rows(x: Tensor, values: int) -> Tensor:
    """[N, A * values, H, W] to [N, H * W * A, values]."""
    return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, values)


class SsdResNet34(nn.Module):
    """SSD on ResNet-34 without its last stage; the third keeps the second's resolution.

    Six maps, at 1200x1200 of 150, 75, 38, 19, 9 and 7 pixels; the heads' stride of 3 makes them
    50, 25, 13, 7, 3 and 3.
    """

    channels, anchors = (256, 512, 512, 256, 256, 256), (4, 6, 6, 6, 4, 4)

    def __init__(self, classes: int = 81) -> None:
        super().__init__()
        self.classes = classes
        inner, strides, margins = (256, 256, 128, 128, 128), (2, 2, 2, 2, 1), (1, 1, 1, 0, 0)
        extras = [
            nn.Sequential(
                nn.Conv2d(self.channels[i], inner[i], 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(inner[i], self.channels[i + 1], 3, strides[i], margins[i]),
                nn.ReLU(inplace=True),
            )
            for i in range(5)
        ]
        backbone = nn.Sequential(stem(), *basic_stages((1, 2, 1)))
        self.levels = nn.ModuleList([backbone, *extras])
        self.scores = nn.ModuleList(self._head(i, classes) for i in range(6))
        self.boxes = nn.ModuleList(self._head(i, 4) for i in range(6))

    def _head(self, level: int, values: int) -> nn.Conv2d:
        return nn.Conv2d(self.channels[level], self.anchors[level] * values, 3, 3, 1)

    def forward(self, x: Tensor) -> Predictions:
        """[N, 3, H, W] to logits [N, classes, anchors] and encoded boxes [N, 4, anchors]."""
        scores, boxes = [], []
        for level, score, box in zip(self.levels, self.scores, self.boxes, strict=True):
            x = level(x)
            scores.append(score(x).reshape(x.shape[0], self.classes, -1))
            boxes.append(box(x).reshape(x.shape[0], 4, -1))
        return torch.cat(scores, 2), torch.cat(boxes, 2)
