"""Small networks with parts that can be dropped, for the space of a teacher's own layers."""

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, max_pool2d

from kdcompile.models.csrnet import build
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.c2, self.b2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(x + self.b2(self.c2(self.act(self.b1(self.c1(x))))))


class ResNet(nn.Module):
    """Residual blocks with batch norms, one batch norm that cannot fold, a pooled head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one = nn.Sequential(Block(16), Block(16))
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.two, self.norm = nn.Sequential(Block(32), Block(32)), nn.BatchNorm2d(32)
        self.fc, self.last = nn.Linear(32 * 4, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.two(torch.relu(self.down(self.one(torch.relu(self.stem(x))))))
        x = adaptive_avg_pool2d(self.norm(max_pool2d(x, 2)), 2).flatten(1)
        return self.last(torch.relu(self.fc(x)))


class Inverted(nn.Module):
    def __init__(self, width):
        super().__init__()
        wide = 2 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, wide, 3, padding=1, groups=wide), nn.BatchNorm2d(wide), nn.ReLU6()),
            *(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return x + self.body(x)


class Mobile(nn.Module):
    """Inverted residuals, a gate, a concatenation, grouped and transposed convolutions."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.blocks = nn.Sequential(Inverted(16), Inverted(16))
        self.side = nn.Sequential(
            *(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
        )
        self.grouped, self.up = nn.Conv2d(40, 32, 3, groups=4), nn.ConvTranspose2d(32, 16, 2, 2)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, x):
        x = self.blocks(torch.relu(self.stem(x)))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = torch.cat([x, self.side(x)], 1)
        return self.out(
            interpolate(torch.relu(self.up(torch.relu(self.grouped(x)))), scale_factor=2.0)
        )


class Digits(nn.Sequential):
    """A chain with convolutions that keep their width."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(
                nn.Conv2d(16, 32, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=2, dilation=2),
            ),
            *(nn.ReLU(), nn.Conv2d(32, 1, 1)),
        )


def quarter_csrnet():
    """A sixteenth of the export's time."""
    teacher = build().eval()
    (narrow,) = architectures(teacher, [1, 3, 32, 32], 8, 0, [1 / 4])
    return student_from_architecture(teacher, narrow, None)


def trained(network):
    """The simplifier takes out biases that are zero, which those of a trained network are not."""
    for value in network.state_dict().values():
        if value.is_floating_point():
            value += torch.rand(value.shape) / 16
    return network.eval()
