"""Small networks whose channels cannot be resized, or can though their layers are subclasses."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm, self.widen = nn.LayerNorm(width), nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        return x + self.narrow(functional.gelu(self.widen(y))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    """Linear layers on channels-last maps, as in ConvNeXt."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.Sequential(ConvNeXtBlock(width), ConvNeXtBlock(width))
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))


class ViT(nn.Module):
    """Patches, tokens, attention, a class token."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, stride=8)
        self.position = nn.Parameter(torch.zeros(1, 5, width))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, width)
        self.qkv, self.head = nn.Linear(width, 3 * width), nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.position
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 1, -1)).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.project(y))[:, 0])


class Heads(nn.Module):
    """Attention whose code takes the size of a head from its input, or from an attribute."""

    def __init__(self, width: int = 64, heads: int = 4, fixed: int = 0) -> None:
        super().__init__()
        self.heads, self.size = heads, fixed
        self.patch, self.norm = nn.Conv2d(3, width, 4, stride=4), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        n, t, width = x.shape
        size = self.size or width // self.heads
        q, k, v = self.qkv(self.norm(x)).reshape(n, t, 3, self.heads, size).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-2, -1) * size**-0.5).softmax(-1) @ v
        x = x + self.project(y.transpose(1, 2).reshape(n, t, self.heads * size))
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """torch's own layer of a transformer, and a width that its forward has in an attribute."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width, self.patch = width, nn.Conv2d(3, width, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(width, 4, 96, batch_first=True)
        self.head = nn.Linear(width, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).reshape(len(image), self.width, -1).permute(0, 2, 1)
        return self.head(self.layer(x).mean(1))


class Recurrent(nn.Module):
    """Columns of an image read one after the other: no rule resizes a cell of one step."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.cell, self.head = nn.GRUCell(width, width), nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        state = None
        for column in self.stem(image).mean(2).unbind(2):
            state = self.cell(column, state)
        return self.head(state)


class HardCoded(nn.Module):
    """Its forward asks for 32 channels by that number."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 4, stride=4), nn.LayerNorm(width)
        self.narrow, self.head = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.stem(image).reshape(len(image), 32, 16).transpose(1, 2)
        return self.head((tokens + self.narrow(self.norm(tokens))).mean(1))


class NormAct(nn.BatchNorm2d):
    """Batch norm and activation in one, with a constructor of its own."""

    def __init__(self, num_features: int, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__(num_features)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class SamePad(nn.Conv2d):
    """A convolution that pads by itself, as TensorFlow does."""

    def __init__(self, *given, name: str = "same", **more) -> None:
        super().__init__(*given, **more)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(x, (0, 1, 0, 1))
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class Subclassed(nn.Module):
    """A network of nothing but subclasses; its depthwise convolution is one too."""

    def __init__(self, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.stem, self.norm = SamePad(3, width, 3, stride=2, bias=False), NormAct(width, nn.SiLU)
        self.deep = SamePad(width, width, 3, groups=width, bias=False)
        self.point, self.last = nn.Conv2d(width, 2 * width, 1, bias=False), NormAct(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.deep(self.norm(self.stem(image)))
        return self.head(self.last(self.point(x)).mean((2, 3)))


class Masked(nn.Conv2d):
    """A tensor of its own, as long as its channels."""

    def __init__(self, *given, **more) -> None:
        super().__init__(*given, **more)
        self.register_buffer("mask", torch.ones(self.out_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.mask


class Remembering(nn.Conv2d):
    """Channels that its forward has from elsewhere than its attributes."""

    def __init__(self, *given, **more) -> None:
        super().__init__(*given, **more)
        self.count = self.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y.view(len(y), self.count, *y.shape[2:])


def between(kind: type[nn.Conv2d]) -> nn.Module:
    """A network with a convolution of a kind in its middle."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), kind(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 1, 1)
    )
