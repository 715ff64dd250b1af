"""Small networks, each with one way of using channels that real backbones have."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Multiplied(nn.Module):
    """A depthwise convolution that gives two channels of each, and a shortcut around the next."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.deep = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
        self.side = nn.Conv2d(2 * width, 2 * width, 1)
        self.head = nn.Conv2d(2 * width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(self.stem(x).relu())
        return self.head((y + self.side(y)).relu())


class Unfolded(nn.Module):
    """Patches become the batch, as in MobileViT: channels are folded with rows, and cut off."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, width, 1), nn.Linear(width, width)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = (y := self.stem(x)).shape
        y = y.reshape(n * c * (h // 2), 2, w // 2, 2).transpose(1, 2)
        y = y.reshape(n, c, h * w // 4, 4).transpose(1, 3).reshape(n * 4, h * w // 4, c)
        y = self.mix(y).relu().reshape(n, 4, h * w // 4, c).transpose(1, 3)
        y = y.reshape(n * c * (h // 2), w // 2, 2, 2).transpose(1, 2)
        return self.head(y.reshape(n, c, h, w))


class Radix(nn.Module):
    """Two groups of a convolution are weighed against each other, as in ResNeSt."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 1)
        self.both = nn.Conv2d(width, 2 * width, 3, padding=1, groups=2)
        self.less, self.more = nn.Conv2d(width, width, 1), nn.Conv2d(width, 2 * width, 1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.both(self.stem(x)).relu()
        parts = y.reshape(len(y), 2, y.shape[1] // 2, *y.shape[2:])
        weights = self.more(self.less(parts.sum(1).mean((2, 3), keepdim=True)).relu())
        weights = weights.view(len(y), 1, 2, -1).transpose(1, 2).softmax(1).reshape(len(y), -1)
        weights = weights.reshape(len(y), 2, y.shape[1] // 2, 1, 1)
        return self.head((parts * weights).sum(1))


class Shuffled(nn.Module):
    """Pixels become channels, and channels become pixels again."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, width, 1), nn.Conv2d(4 * width, 4 * width, 1)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.pixel_unshuffle(self.stem(x).relu(), 2)
        return self.head(functional.pixel_shuffle(self.body(y).relu(), 2))


class Wrapped(nn.Module):
    """Linear attention as in EfficientViT: a sum of its weights is a channel more, in float32."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 1), nn.Conv2d(width, 4, 1)
        self.query, self.key = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.value = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        q, k, v = (of(y).flatten(2).transpose(1, 2) for of in (self.query, self.key, self.value))
        with torch.autocast("cpu", enabled=False):
            q, k = q.relu(), k.relu()
            v = functional.pad(v, (0, 1), value=1.0)
            found = q @ (k.transpose(1, 2) @ v)
            found = found[..., :-1] / (found[..., -1:] + 1.0)
        return self.head(y + found.transpose(1, 2).reshape(y.shape))


class Shaped(nn.Module):
    """A scale that is viewed in a shape which the module keeps."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.shape = (width, 1, 1)
        self.stem, self.scale = nn.Conv2d(3, width, 1), nn.Parameter(torch.ones(width))
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu() * self.scale.view(self.shape))


class Gained(nn.Conv2d):
    """A convolution whose weight is standardised, and scaled by a gain an output."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        gain = (self.gain * 0.5).view(-1)
        weight = functional.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0)
        return functional.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


class Computed(nn.Module):
    """Nothing but convolutions whose weights are computed."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.body = Gained(3, width), Gained(width, width)
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x).relu()).relu())


class Attention(nn.Module):
    """Attention over 16 tokens in one of the ways of `kind`."""

    def __init__(self, kind: str, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.kind, self.heads, self.head_dim = kind, heads, width // heads
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.before, self.after = nn.Linear(heads, heads), nn.Linear(heads, heads)
        self.fewer = nn.Conv2d(width, width, 2, stride=2)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        y = self.project(getattr(self, self.kind)(tokens))
        return self.head((tokens + y).mean(1))

    def channels(self, x: Tensor) -> Tensor:
        """Of channels with channels, as in XCiT."""
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 4, 1).unbind(0)
        q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)
        return (weights @ v).permute(0, 3, 1, 2).reshape(n, t, c)

    def talking(self, x: Tensor) -> Tensor:
        """With heads that are mixed, as in CaiT."""
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = self.before((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        weights = self.after(weights.softmax(-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (weights @ v).transpose(1, 2).reshape(n, t, c)

    def reduced(self, x: Tensor) -> Tensor:
        """With fewer keys, as in PVT: the code gives what a layer makes the size that it reads."""
        n, t, c = x.shape
        q = self.qkv(x)[..., : self.heads * self.head_dim].reshape(n, t, self.heads, -1)
        few = self.fewer(x.permute(0, 2, 1).reshape(n, c, 4, 4)).reshape(n, c, -1)
        few = self.norm(few.permute(0, 2, 1)).reshape(n, -1, self.heads, self.head_dim)
        few = few.transpose(1, 2)
        y = functional.scaled_dot_product_attention(q.transpose(1, 2), few, few)
        return y.transpose(1, 2).reshape(n, t, c)


class Interleaved(nn.Module):
    """Blocks of ShuffleNet: half of the channels pass, and the two halves are interleaved."""

    def __init__(self, width: int = 16, blocks: int = 1) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 2 * width, 1), nn.Conv2d(2 * width, 4, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            n, c, height, width = x.shape
            x = x.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)
            left, right = x.chunk(2, 1)
            x = torch.cat([left, block(right).relu()], 1)
        return self.head(x)
