"""The image encoder of OWL-ViT: a vision transformer and heads on each of its patches.

Sources: Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1 (encoder of size B); Minderer et al.
2022, arXiv:2205.06230, section 3.2 (class token multiplied in, boxes and classes of each patch).
"""

import torch
from torch import Tensor, nn

WIDTH, DEPTH, HEADS, TEXT = 768, 12, 12, 512  # of size B; the last is the width of a query


class Attention(nn.Module):
    """Of all tokens to all."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.last = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, WIDTH] to the same."""
        batch, tokens, _ = x.shape
        made = self.made(x).reshape(batch, tokens, 3 * HEADS, WIDTH // HEADS).transpose(1, 2)
        query, key, value = made.split(HEADS, 1)
        weights = (query @ key.transpose(2, 3) * (WIDTH // HEADS) ** -0.5).softmax(3)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, tokens, WIDTH)
        result: Tensor = self.last(mixed)
        return result


class QuickGelu(nn.Module):
    """The approximation by a sigmoid that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's size."""
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Attention, then two linear layers, each normalised before and added to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.products = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), QuickGelu(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, WIDTH] to the same."""
        x = x + self.attention(self.first(x))
        result: Tensor = x + self.products(self.second(x))
        return result


class OwlImageEncoder(nn.Module):
    """Boxes, and what a text query is compared with, of each patch."""

    def __init__(self, size: int, patch: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, patch, patch, bias=False)
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.places = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, WIDTH))
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.merged = nn.LayerNorm(WIDTH)
        self.boxes = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.GELU(),
            nn.Linear(WIDTH, 4), nn.Sigmoid(),
        )  # fmt: skip
        self.classes = nn.Linear(WIDTH, TEXT)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3, size, size] to [N, patches, TEXT] and [N, patches, 4]."""
        patches = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.token.expand(len(image), -1, -1), patches), 1) + self.places
        found = self.after(self.blocks(self.before(tokens)))
        merged = self.merged(found[:, 1:] * found[:, :1])
        return self.classes(merged), self.boxes(merged)
