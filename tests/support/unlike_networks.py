"""Small networks of two families: a ViT with a class token, a CNN, and one with channels last."""

import torch
from torch import nn

CODE = '''
import torch
from torch import nn


class Block(nn.Module):
    """Attention of one head and an MLP, each behind a norm and added."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, 2)
        weights = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)
        x = x + weights @ v
        return x + self.mlp(x)


class ViT(nn.Module):
    """Patches of 2x2 pixels of a 16x16 image and a class token: 65 tokens, four blocks."""

    def __init__(self, width=16, outputs=3, channels=1):
        super().__init__()
        torch.manual_seed(width)
        self.patches = nn.Conv2d(channels, width, 2, 2)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(torch.randn(1, 65, width) / 4)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def cnn(width=4, outputs=3, channels=1):
    """Stages of 16x16, 8x8 and 4x4."""
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, 2, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(64 * width, outputs),
    )
'''
_made: dict = {}
exec(CODE, _made)
ViT, cnn = _made["ViT"], _made["cnn"]


class ChannelsLast(nn.Module):
    """A map of 8x8 whose blocks work on [N, H, W, C], as those of Swin do."""

    def __init__(self, width=6):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(2)
        )
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean((1, 2)))


EXAMPLE = torch.zeros(1, 1, 16, 16)
