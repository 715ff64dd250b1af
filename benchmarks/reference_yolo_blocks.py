"""The blocks of YOLOv8 and YOLO11; sources are in `reference_yolo`."""

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD = 64  # channels of an attention head; its queries and keys have half


def convolution(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, active: bool = True
) -> nn.Sequential:
    """Convolution without bias, centred; batch normalisation; SiLU where asked for."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.SiLU(inplace=True)] if active else []))


def separable(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """A depthwise convolution and one over the channels."""
    return nn.Sequential(
        convolution(inputs, inputs, size, groups=inputs), convolution(inputs, outputs, 1)
    )


class Bottleneck(nn.Module):
    """Two 3x3 convolutions by way of `inner` channels, added to their input where asked for."""

    def __init__(self, channels: int, inner: int, adds: bool) -> None:
        super().__init__()
        first, last = convolution(channels, inner, 3), convolution(inner, channels, 3)
        self.branch = nn.Sequential(first, last)
        self.adds = adds

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's size."""
        made: Tensor = self.branch(x)
        return x + made if self.adds else made


class Nested(nn.Module):
    """A cross-stage block with two branches of half the channels, two bottlenecks in one."""

    def __init__(self, channels: int, adds: bool) -> None:
        super().__init__()
        inner = channels // 2
        self.first, self.second = convolution(channels, inner, 1), convolution(channels, inner, 1)
        self.blocks = nn.Sequential(*(Bottleneck(inner, inner, adds) for _ in range(2)))
        self.last = convolution(2 * inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's size."""
        joined = torch.cat((self.blocks(self.first(x)), self.second(x)), 1)
        result: Tensor = self.last(joined)
        return result


class CrossStage(nn.Module):
    """One convolution split in two; blocks in a row on the second half; all outputs joined."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, later: bool, *, adds: bool,
        share: float = 0.5, nested: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        inner = int(outputs * share)
        self.first = convolution(inputs, 2 * inner, 1)
        self.blocks = nn.ModuleList(
            Nested(inner, adds)
            if nested
            else Bottleneck(inner, inner // 2 if later else inner, adds)
            for _ in range(depth)
        )
        self.last = convolution((2 + depth) * inner, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, H, W]."""
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        result: Tensor = self.last(torch.cat(parts, 1))
        return result


class Pool(nn.Module):
    """Maxima over 5x5, three in a row, joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.first, self.last = convolution(channels, inner, 1), convolution(4 * inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's size."""
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(functional.max_pool2d(parts[-1], 5, 1, 2))
        result: Tensor = self.last(torch.cat(parts, 1))
        return result


class Attention(nn.Module):
    """Of all places to all, with a depthwise convolution of the values for where they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = channels // HEAD
        self.made = convolution(channels, 2 * channels, 1, active=False)
        self.place = convolution(channels, channels, 3, groups=channels, active=False)
        self.last = convolution(channels, channels, 1, active=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's size."""
        batch, channels, height, width = x.shape
        made = self.made(x).reshape(batch, self.heads, 2 * HEAD, height * width)
        query, key, value = made.split((HEAD // 2, HEAD // 2, HEAD), 2)
        weights = (query.transpose(2, 3) @ key * (HEAD // 2) ** -0.5).softmax(3)
        mixed = (value @ weights.transpose(2, 3)).reshape(batch, channels, height, width)
        placed = self.place(value.reshape(batch, channels, height, width))
        result: Tensor = self.last(mixed + placed)
        return result


class Attended(nn.Module):
    """One convolution split in two, the second half through blocks of attention, both joined."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        inner = channels // 2
        self.first, self.last = (convolution(channels, channels, 1) for _ in range(2))
        self.attentions = nn.ModuleList(Attention(inner) for _ in range(depth))
        self.products = nn.ModuleList(
            nn.Sequential(
                convolution(inner, 2 * inner, 1), convolution(2 * inner, inner, 1, active=False)
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's size."""
        kept, moved = self.first(x).chunk(2, 1)
        for attention, products in zip(self.attentions, self.products, strict=True):
            moved = moved + attention(moved)
            moved = moved + products(moved)
        result: Tensor = self.last(torch.cat((kept, moved), 1))
        return result
