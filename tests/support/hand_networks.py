"""Small networks of kinds that no package of backbones has: sequences, clips, several tensors."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


class Signals(nn.Module):
    """A 1-D convolution network for two channels of 512 samples."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = (2, width, 2 * width, 4 * width)
        self.body = nn.Sequential(
            *(
                nn.Sequential(nn.Conv1d(a, b, 9, stride=2, padding=4), nn.BatchNorm1d(b), nn.ReLU())
                for a, b in pairwise(sizes)
            )
        )
        self.pool, self.head = nn.AdaptiveMaxPool1d(1), nn.Linear(4 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.body(x)).squeeze(-1))


class Clips(nn.Module):
    """A 3-D convolution network for 8 frames of 32x32 pixels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes = (3, width, 2 * width, 4 * width)
        self.body = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv3d(a, b, 3, padding=1), nn.BatchNorm3d(b), nn.ReLU(), nn.MaxPool3d(2)
                )
                for a, b in pairwise(sizes)
            )
        )
        self.head = nn.Linear(4 * width, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3, 4)))


class Recurrent(nn.Module):
    """Two layers of an LSTM or a GRU over 24 steps of 40 values, in one or both directions."""

    def __init__(
        self, kind: type[nn.RNNBase] = nn.LSTM, both: bool = False, size: int = 128
    ) -> None:
        super().__init__()
        self.cell = kind(40, size, 2, batch_first=True, bidirectional=both)
        self.norm = nn.LayerNorm((1 + both) * size)
        self.head = nn.Linear((1 + both) * size, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.cell(x)[0])[:, -1])


class States(nn.Module):
    """The last states of both directions of a GRU over token ids, next to each other."""

    def __init__(self, size: int = 96) -> None:
        super().__init__()
        self.words = nn.Embedding(200, size)
        self.cell = nn.GRU(size, size, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * size, 4)

    def forward(self, ids: Tensor) -> Tensor:
        states = self.cell(self.words(ids))[1]
        return self.head(torch.cat([states[-2], states[-1]], 1))


class Words(nn.Module):
    """Token ids, a position table, and torch's own transformer encoder."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(200, width), nn.Embedding(16, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.encoder(x).mean(1))


def _step(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class TwoInputs(nn.Module):
    """An image and a vector of twelve numbers; two outputs by name."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.image = nn.Sequential(_step(3, width, 2), _step(width, 2 * width, 2))
        self.numbers = nn.Sequential(nn.Linear(12, width), nn.GELU(), nn.Linear(width, 2 * width))
        self.both = nn.Linear(4 * width, 4 * width)
        self.kind, self.size = nn.Linear(4 * width, 7), nn.Linear(4 * width, 2)

    def forward(self, image: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        seen = torch.cat([self.image(image).mean((2, 3)), self.numbers(numbers)], 1)
        y = functional.relu(self.both(seen))
        return {"kind": self.kind(y), "size": self.size(y)}


class Pyramid(nn.Module):
    """A feature pyramid with three outputs, the heads shared by all levels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        sizes = (width, 2 * width, 4 * width)
        self.stem = _step(3, width, 2)
        self.down = nn.ModuleList(
            _step(a, b, 2) for a, b in zip((width, *sizes), sizes, strict=False)
        )
        self.across = nn.ModuleList(nn.Conv2d(size, width, 1) for size in sizes)
        self.head = nn.Sequential(_step(width, width), nn.Conv2d(width, 9, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for step, across in zip(self.down, self.across, strict=True):
            x = step(x)
            maps.append((x, across))
        top, found = None, []
        for seen, across in reversed(maps):
            own = across(seen)
            top = own if top is None else own + functional.interpolate(top, size=own.shape[-2:])
            found.append(self.head(top))
        return found[::-1]


class UNet(nn.Module):
    """Down and up again by transposed convolutions, with concatenations across."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = _step(3, width), _step(width, 2 * width)
        self.middle = _step(2 * width, 4 * width)
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.third = _step(4 * width, 2 * width)
        self.upper = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.fourth, self.head = _step(2 * width, width), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.first(x)
        two = self.second(functional.max_pool2d(one, 2))
        y = self.up(self.middle(functional.max_pool2d(two, 2)))
        y = self.upper(self.third(torch.cat([y, two], 1)))
        return self.head(self.fourth(torch.cat([y, one], 1)))


def network(name: str, times: int = 1) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network by its name in inference mode, and its example inputs.

    Args:
        name: one of NAMES.
        times: how many times as wide as its default it is.
    """
    generator = torch.Generator().manual_seed(0)

    def values(*size: int) -> Tensor:
        return torch.randn(1, *size, generator=generator)

    ids = torch.arange(12).reshape(1, 12) * 7 % 200
    wide, deep, cell = 64 * times, 32 * times, 128 * times
    made = {
        "signals": lambda: (Signals(wide), (values(2, 512),)),
        "clips": lambda: (Clips(deep), (values(3, 8, 32, 32),)),
        "lstm": lambda: (Recurrent(size=cell), (values(24, 40),)),
        "lstm_both": lambda: (Recurrent(both=True, size=cell), (values(24, 40),)),
        "gru": lambda: (Recurrent(nn.GRU, size=cell), (values(24, 40),)),
        "gru_states": lambda: (States(96 * times), (ids,)),
        "words": lambda: (Words(128 * times), (ids,)),
        "two_inputs": lambda: (TwoInputs(wide), (values(3, 32, 32), values(12))),
        "pyramid": lambda: (Pyramid(wide), (values(3, 64, 64),)),
        "unet": lambda: (UNet(deep), (values(3, 64, 64),)),
    }[name]()
    return made[0].eval(), made[1]


NAMES = (
    "signals", "clips", "lstm", "lstm_both", "gru", "gru_states", "words", "two_inputs", "pyramid",
    "unet",
)  # fmt: skip
