"""The blocks that a stage of a staged student is made of, and how each is folded for inference.

Every convolution is followed by a batch normalisation while it trains and is one convolution with
a bias after `fold`; every block ends in ReLU. A block that strides by 4 has windows of 5x5, since
3x3 would leave a part of the pixels unread; all others have 3x3.

Sources: `separable`, Howard et al. 2017 (MobileNets); `repvgg`, Ding et al., CVPR 2021;
`bottleneck`, He et al., CVPR 2016. Of the four only `bottleneck` adds its input to its output,
where stride and channels allow: in `repvgg` the same sum disappears by folding.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

INNER_TILE = 8  # channels: 16 bytes of half floats


class Window(NamedTuple):
    """What the one convolution of a block that looks around a pixel is like."""

    kernel: int
    stride: int
    dilation: int

    @property
    def padding(self) -> int:
        """Zeros on each side, so that ceil(size / stride) values come out."""
        return self.dilation * (self.kernel // 2)


POINT = Window(1, 1, 1)


def window(stride: int, dilation: int) -> Window:
    """The window of a block."""
    return Window(5 if stride > 2 else 3, stride, dilation)


def inner_width(width: int) -> int:
    """Channels inside a bottleneck: half, rounded up to `INNER_TILE`."""
    return -(-width // (2 * INNER_TILE)) * INNER_TILE


class NormedConv(nn.Module):
    """A convolution without bias and its batch normalisation."""

    def __init__(self, inputs: int, outputs: int, window: Window, groups: int = 1) -> None:
        """Untrained weights."""
        super().__init__()
        sides = (window.kernel, window.stride, window.padding, window.dilation)
        self.convolution = nn.Conv2d(inputs, outputs, *sides, groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, image: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        normed: Tensor = self.norm(self.convolution(image))
        return normed

    def folded(self) -> nn.Conv2d:
        """One convolution with bias that gives the same in inference mode."""
        weight, bias = _absorb_norm(self.convolution.weight, self.norm)
        return _with_weights(self.convolution, weight, bias)


class RepConv(nn.Module):
    """A 3x3 and a 1x1 convolution and, where stride and channels allow, the input; summed.

    Each of the branches has its own batch normalisation.
    """

    def __init__(self, inputs: int, outputs: int, window: Window) -> None:
        """Untrained weights."""
        super().__init__()
        self.wide = NormedConv(inputs, outputs, window)
        self.point = NormedConv(inputs, outputs, Window(1, window.stride, 1))
        passes = inputs == outputs and window.stride == 1
        self.identity = nn.BatchNorm2d(outputs) if passes else None

    def forward(self, image: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        total: Tensor = self.wide(image) + self.point(image)
        return total if self.identity is None else total + self.identity(image)

    def folded(self) -> nn.Conv2d:
        """One convolution with bias that gives the same in inference mode.

        A 1x1 convolution is a wider one that is zero around its centre, the identity is a 1x1
        convolution with a unit matrix, and convolutions of one window add up by their weights
        (Ding et al., section 3.3).
        """
        wide = self.wide.folded()
        around = wide.kernel_size[0] // 2
        branches = [_absorb_norm(self.point.convolution.weight, self.point.norm)]
        if self.identity is not None:
            eye = torch.eye(wide.out_channels).to(wide.weight)[:, :, None, None]
            branches.append(_absorb_norm(eye, self.identity))
        assert wide.bias is not None, "a folded convolution has one"
        weight, bias = wide.weight.detach(), wide.bias.detach()
        for more, shift in branches:
            weight = weight + functional.pad(more, (around,) * 4)
            bias = bias + shift
        return _with_weights(wide, weight, bias)


class Bottleneck(nn.Module):
    """1x1 to `inner_width`, 3x3 there, 1x1 back; plus the input where stride and channels allow."""

    def __init__(self, inputs: int, outputs: int, window: Window) -> None:
        """Untrained weights."""
        super().__init__()
        inner = inner_width(outputs)
        self.reduce = nn.Sequential(NormedConv(inputs, inner, POINT), nn.ReLU())
        self.middle = nn.Sequential(NormedConv(inner, inner, window), nn.ReLU())
        self.expand = NormedConv(inner, outputs, POINT)
        self.activation = nn.ReLU()
        self.adds = inputs == outputs and window.stride == 1

    def forward(self, image: Tensor) -> Tensor:
        """[N, inputs, H, W] to [N, outputs, ceil(H / stride), ceil(W / stride)]."""
        made = self.expand(self.middle(self.reduce(image)))
        activated: Tensor = self.activation(made + image if self.adds else made)
        return activated


def conv(inputs: int, outputs: int, window: Window) -> nn.Module:
    """A convolution and ReLU."""
    return nn.Sequential(NormedConv(inputs, outputs, window), nn.ReLU())


def separable(inputs: int, outputs: int, window: Window) -> nn.Module:
    """A depthwise convolution and a 1x1 one, ReLU after each."""
    depthwise = NormedConv(inputs, inputs, window, groups=inputs)
    return nn.Sequential(depthwise, nn.ReLU(), NormedConv(inputs, outputs, POINT), nn.ReLU())


def repvgg(inputs: int, outputs: int, window: Window) -> nn.Module:
    """A re-parameterised convolution and ReLU."""
    return nn.Sequential(RepConv(inputs, outputs, window), nn.ReLU())


BLOCKS: dict[str, Callable[[int, int, Window], nn.Module]] = {
    "conv": conv, "separable": separable, "repvgg": repvgg, "bottleneck": Bottleneck,
}  # fmt: skip


def fold(module: nn.Module) -> nn.Module:
    """Replace, in place, every `NormedConv` and `RepConv` inside by one convolution with bias.

    The output in inference mode stays as it is, but for rounding. Returns the module.
    """
    for name, child in module.named_children():
        if isinstance(child, NormedConv | RepConv):
            setattr(module, name, child.folded().train(child.training))
        else:
            fold(child)
    return module


def _absorb_norm(weight: Tensor, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that gives what the normalisation gives after it.

    y = (x - mean) * gamma / sqrt(variance + eps) + beta, in float64.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None, "the blocks' normalisations keep statistics"
    assert variance is not None, "the blocks' normalisations keep statistics"
    scale = norm.weight.detach().double() / (variance.double() + norm.eps).sqrt()
    shift = norm.bias.detach().double() - mean.double() * scale
    scaled = weight.detach().double() * scale[:, None, None, None]
    return scaled.to(weight.dtype), shift.to(weight.dtype)


def _with_weights(like: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    window: Any = (like.kernel_size, like.stride, like.padding, like.dilation, like.groups)
    made = nn.Conv2d(like.in_channels, like.out_channels, *window)
    made.load_state_dict({"weight": weight, "bias": bias})
    return made.to(weight)
