"""The example's teacher: a small residual network (He et al., 2016, for CIFAR-10).

Input [N, 3, H, W], RGB in 0..1 normalised by the spec's mean and std. Output [N, 10]: logits.
"""

from torch import Tensor, nn

WIDTHS, BLOCKS, CLASSES = (16, 32, 64), 2, 10


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Untrained weights."""
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu = nn.ReLU()

    def forward(self, features: Tensor) -> Tensor:
        """The sum of both ways, at least 0."""
        total: Tensor = self.relu(self.body(features) + self.shortcut(features))
        return total


class ResNet(nn.Module):
    """A stem, three stages of blocks that each halve the resolution but the first, a classifier."""

    def __init__(self) -> None:
        """Untrained weights."""
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for block in range(BLOCKS):
                blocks.append(Block(inputs, width, 2 if stage > 0 and block == 0 else 1))
                inputs = width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(inputs, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        features = self.pool(self.blocks(self.stem(image))).flatten(1)
        logits: Tensor = self.classifier(features)
        return logits


def build() -> nn.Module:
    """The untrained teacher; `teacher.safetensors` holds its weights."""
    return ResNet()
