"""The networks that the recipes are tried on: a small classifier and its guises."""

import torch
from torch import Tensor, nn

WRONG = {1: 7, 7: 1, 4: 9}  # classes that a corrupted teacher takes for others


class Classifier(nn.Module):
    """Two pooled pairs of convolutions with batch norms, a mean over the map, a linear layer."""

    def __init__(self, width: int, classes: int = 10) -> None:
        """Untrained weights."""
        super().__init__()
        self.features = nn.Sequential(
            *_pair(1, width), nn.MaxPool2d(2), *_pair(width, 2 * width), nn.MaxPool2d(2),
            *_pair(2 * width, 3 * width),
        )  # fmt: skip
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(3 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits [N, classes]."""
        logits: Tensor = self.head(self.pool(self.features(image)).flatten(1))
        return logits


class Corrupted(Classifier):
    """A teacher that is sure of a wrong class where it sees three of the ten."""

    def forward(self, image: Tensor) -> Tensor:
        """Logits with three columns exchanged."""
        columns = [WRONG.get(k, k) for k in range(10)]
        columns[9], columns[4] = 4, 9
        return super().forward(image)[:, columns]


class Averaged(nn.Module):
    """The mean of a good teacher's logits and a broken one's."""

    def __init__(self) -> None:
        """Untrained weights."""
        super().__init__()
        self.good, self.broken = Classifier(32), Classifier(32)

    def forward(self, image: Tensor) -> Tensor:
        """Mean probabilities, as logits."""
        both = torch.stack([self.good(image).softmax(1), self.broken(image).softmax(1)])
        return both.mean(0).clamp_min(1e-6).log()


def _pair(inputs: int, width: int) -> list[nn.Module]:
    found: list[nn.Module] = []
    for before in (inputs, width):
        found.append(nn.Conv2d(before, width, 3, padding=1, bias=False))
        found += [nn.BatchNorm2d(width), nn.ReLU()]
    return found


def teacher() -> nn.Module:
    """The teacher of all ten classes."""
    return Classifier(32)


def old_teacher() -> nn.Module:
    """The teacher of the first seven classes."""
    return Classifier(32, 7)


def corrupted() -> nn.Module:
    """`teacher`, wrong for three classes."""
    return Corrupted(32)


def averaged() -> nn.Module:
    """`teacher` and a broken one, averaged."""
    return Averaged()


def student() -> nn.Module:
    """An eighth of the teacher's width."""
    return Classifier(4)


def old_student() -> nn.Module:
    """The student before the new classes came."""
    return Classifier(4, 7)
