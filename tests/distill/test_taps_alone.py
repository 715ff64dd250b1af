"""Feature maps of networks whose samples run one at a time."""

import pytest
import torch
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.core.ports import Port, Ports
from kdcompile.distill.feature_maps import feature_maps
from kdcompile.distill.taps import Rewired, Tapped
from kdcompile.models.rows import on_rows, runs_alone

PORTS = Ports((Port("x", (1, 2, 6, 6), "float32"),))


class Single(nn.Module):
    """It takes one sample, as an ONNX file with a fixed batch does."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 3, 3)

    def forward(self, x):
        return self.second(self.first(x).relu()).reshape(1, 12)


def _pair():
    rows = torch.randn(3, 72, generator=torch.Generator().manual_seed(1))
    network = on_rows(Single(), PORTS)
    assert runs_alone(network)
    return network, rows


def test_the_maps_of_all_samples_are_there_in_their_order():
    network, rows = _pair()
    assert list(feature_maps(network, rows[:1])) == ["first", "second"]
    tapped = Tapped(network, ["first", "second"])
    output, maps = tapped(rows)
    assert output.shape == (3, 12)
    plain = Single()
    images = rows.reshape(3, 2, 6, 6)
    torch.testing.assert_close(maps[0], plain.first(images))
    torch.testing.assert_close(maps[1], plain.second(plain.first(images).relu()))
    torch.testing.assert_close(output, maps[1].reshape(3, 12))
    one, (first, _) = tapped(rows[:1])
    torch.testing.assert_close(one, output[:1])
    torch.testing.assert_close(first, maps[0][:1])


def test_the_gradient_of_a_map_is_that_of_all_samples():
    network, rows = _pair()
    _, maps = Tapped(network, ["first"])(rows)
    maps[0].square().mean().backward()
    plain = Single()
    plain.first(rows.reshape(3, 2, 6, 6)).square().mean().backward()
    torch.testing.assert_close(network.first.weight.grad, plain.first.weight.grad)
    assert network.second.weight.grad is None


def test_maps_in_place_of_others_are_refused():
    network, rows = _pair()
    with pytest.raises(KDError) as caught:
        Rewired(network, ["first"], rows[:1])
    assert caught.value.code == "network-alone"
    assert "fitnet" in caught.value.fix
