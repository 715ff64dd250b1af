"""What can be dropped from a network, and what is left when it is."""

import copy

import pytest
import torch
from droppable_networks import Block, Digits, Inverted, Mobile, ResNet
from torch import nn

from kdcompile.models.channels import trace
from kdcompile.models.csrnet import build
from kdcompile.models.dropped import drop, droppable, is_gone, members, tied
from kdcompile.models.shrunk import student_from_architecture


class Outside(nn.Module):
    """A block whose parts are used from outside, one that runs twice, one that is not near x."""

    def __init__(self):
        super().__init__()
        self.used, self.twice, self.plain = Block(4), Block(4), nn.Conv2d(4, 4, 3, padding=1)
        self.wide = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x):
        x = self.twice(self.twice(self.used(x)))
        return self.wide(self.plain(x)) + self.used.c1.weight.sum()


class InPlace(nn.Module):
    """Not near its input, which is overwritten by the output."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x):
        return x.mul_(self.scale)


class Attention(nn.Module):
    """A residual stream whose branches are no blocks of their own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = x + self.a(x)
        return x + torch.relu(self.b(x))


class Keeping(nn.Module):
    """A block that keeps a table which it makes of its parameters when it is first run."""

    def __init__(self):
        super().__init__()
        self.a, self.table, self.kept = nn.Linear(6, 6), nn.Parameter(torch.ones(6)), {}

    def forward(self, x):
        return x + self.a(x) + self.kept.setdefault("table", 2 * self.table)


@pytest.mark.parametrize(
    ("network", "shape", "expected"),
    [
        (ResNet(), (1, 3, 16, 16), ["one.0", "one.1", "two.0", "two.1"]),
        (Mobile(), (1, 3, 16, 16), ["blocks.0", "blocks.1", "side.2"]),
        (Digits(), (1, 1, 16, 16), ["2", "8"]),
        (Outside(), (1, 4, 8, 8), []),
        (nn.Sequential(nn.Conv2d(3, 4, 1), InPlace()), (1, 3, 8, 8), []),
        (nn.Sequential(Attention(), nn.Linear(6, 6)), (1, 6), ["0"]),
        (nn.Sequential(Keeping(), Keeping(), nn.Linear(6, 6)), (1, 6), ["0", "1"]),
    ],
    ids=["resnet", "mobile", "digits", "outside", "in place", "attention", "keeping"],
)
def test_droppable(network, shape, expected):
    before = copy.deepcopy(network.eval()).state_dict()
    assert droppable(network, shape) == expected
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())


def test_csrnet_drops_the_convolutions_that_keep_their_width():
    found = droppable(build().eval(), (1, 3, 16, 16))
    front = [f"frontend.{place}" for place in (2, 7, 12, 14, 19, 21)]
    assert found == [*front, "backend.0", "backend.2", "backend.4"]


def test_a_convolution_goes_with_what_is_right_behind_it():
    network = Digits().eval()
    assert members(network, "2") == ["2", "3", "4"]
    assert members(network, "8") == ["8", "9"]
    assert members(ResNet(), "one.0") == ["one.0"]
    assert is_gone("a.b.c", ["a.b"])
    assert not is_gone("a.bc", ["a.b"])


def test_without_a_part_its_input_passes():
    network = Digits().eval()
    whole = copy.deepcopy(network)
    drop(network, ["2", "8"])
    x = torch.randn(2, 1, 16, 16)
    rest = [whole[0], whole[1], whole[5], whole[6], whole[7], whole[10]]
    assert torch.equal(network(x), nn.Sequential(*rest)(x))


def test_a_student_without_parts(tmp_path):
    architecture = {"family": "shrink", "seed": 0, "modules": {}, "dropped": ["one.1", "two.0"]}
    student = student_from_architecture(ResNet(), architecture, tmp_path)
    assert isinstance(student.one[1], nn.Identity)
    assert isinstance(student.two[0], nn.Identity)
    assert isinstance(student.two[1], Block)


def test_groups_around_dropped_convolutions_are_tied():
    channels = trace(build().eval(), (1, 3, 16, 16))
    ties = tied(channels, ["backend.0", "backend.2"])
    assert len(ties) == 3
    assert len(set(ties.values())) == 1
    assert tied(channels, []) == {}


def test_an_inverted_residual_is_one_part():
    network = nn.Sequential(Inverted(4))
    assert droppable(network.eval(), (1, 4, 8, 8)) == ["0"]
