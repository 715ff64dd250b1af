"""The axis of channels after operators: a tensor whose values name the channel says where it is."""

from contextlib import suppress

import pytest
import torch

from kdcompile.core.errors import KDError
from kdcompile.models.channel_axes import reshaped
from kdcompile.models.channels import trace
from kdcompile.models.cuts import cuts


def _marked(shape, dim):
    """Each value is the index of its channel."""
    view = [1] * len(shape)
    view[dim] = shape[dim]
    return torch.arange(shape[dim]).reshape(view).expand(shape)


@pytest.mark.parametrize(
    ("before", "after", "dim"),
    [
        ((2, 6, 4, 5), (2, 6, 20), 1),
        ((2, 6, 4, 5), (2, 120), 1),
        ((2, 20, 6), (2, 4, 5, 6), 2),
        ((2, 4, 5, 6), (40, 6), 3),
        ((2, 4, 4, 6), (2, 2, 2, 2, 2, 6), 3),
        ((2, 2, 3, 6), (2, 36), 3),
        ((1, 6), (1, 6, 1, 1), 1),
        ((3, 1, 6, 1), (3, 6), 2),
    ],
)
def test_where_a_reshape_puts_the_channels(before, after, dim):
    found, lead, trail = reshaped(before, after, dim)
    channels = torch.arange(before[dim]).repeat_interleave(trail).repeat(lead)
    moved = _marked(before, dim).reshape(after).movedim(found, -1)
    assert (moved == channels).all()


@pytest.mark.parametrize(
    ("before", "after", "dim"),
    [((2, 6, 4), (2, 2, 3, 4), 1), ((2, 65, 2, 6), (2, 780), 3), ((2, 6, 4), (12, 4), 0)],
)
def test_channels_that_a_reshape_splits_or_repeats_too_often_are_not_followed(before, after, dim):
    found = reshaped(before, after, dim)
    assert found is None or (found[1], found[2]) == (1, 6)


OPERATORS = {
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.flatten(2).transpose(1, 2),
    "pad": lambda x: torch.nn.functional.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 2)),
    "windows": lambda x: x.permute(0, 2, 3, 1).reshape(2, 2, 2, 4, -1).transpose(1, 2),
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "select": lambda x: x.flatten(2).transpose(1, 2)[:, 0],
    "slice": lambda x: x[:, :, ::2, 1:],
    "squeeze": lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1),
    "norm": lambda x: x * x.norm(dim=(2, 3), keepdim=True),
    "split": lambda x: x.split(2, 2)[1],
    "unsqueeze": lambda x: x.mean((2, 3)).unsqueeze(1).expand(2, 3, -1),
    "unbind": lambda x: x.unbind(2)[0],
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_width_of_what_an_operator_gives_is_that_of_its_channels(name):
    """A linear layer behind it is narrowed together with the convolution in front of it."""
    operator = OPERATORS[name]

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = torch.nn.Conv2d(3, 6, 1), torch.nn.Linear(6, 6)
            # no other axis has as many
            self.at = list(operator(torch.zeros(2, 6, 4, 4)).shape).index(6, 1)

        def forward(self, x):
            return self.last(operator(self.first(x)).movedim(self.at, -1)).mean(-1)

    channels = trace(Network().eval(), (2, 3, 4, 4))
    first, last = channels.layers["first"], channels.layers["last"]
    assert [channels.root(g) for g, _, _ in last.inputs] == [channels.root(first.outputs[0][0])]
    assert channels.root(first.outputs[0][0]) not in channels.frozen


class Keeping(torch.nn.Module):
    """A network that makes a table at its first call and keeps it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 16, 1), torch.nn.Conv2d(16, 4, 1)
        self.start, self.kept = torch.nn.Parameter(torch.ones(16)), {}

    def forward(self, x):
        if "table" not in self.kept:
            self.kept["table"] = self.start * 2
        y = self.first(x) + self.kept["table"].reshape(1, -1, 1, 1)
        return self.last(y.relu().reshape(y.shape)).relu()


@pytest.mark.parametrize("look", [trace, cuts])
def test_a_network_keeps_nothing_of_being_looked_at(look):
    """It is run on tensors without values, which it must not keep."""
    network = Keeping().eval()
    with suppress(KDError):  # one size throughout has no stages
        look(network, (1, 3, 4, 4))
    assert network.kept == {}
    assert type(network(torch.zeros(1, 3, 4, 4))) is torch.Tensor
