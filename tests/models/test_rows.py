"""Networks of any tensors that run on rows."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from two_inputs import network, samples

from kdcompile.core.errors import KDError
from kdcompile.core.ports import Port, Ports
from kdcompile.models.rows import on_rows, on_tensors, output_ports, ports_of

PORTS = Ports((Port("signal", (1, 2, 24), "float32"), Port("ids", (1, 5), "int64")))


def _rows(count):
    given = samples(count, seed=1)
    each = [{name: array[i] for name, array in given.items()} for i in range(count)]
    return given, torch.from_numpy(np.concatenate([PORTS.pack(one, "") for one in each]))


def test_rows_give_what_the_tensors_give():
    plain, (given, rows) = network(), _rows(4)
    wanted = plain(torch.from_numpy(given["signal"]), torch.from_numpy(given["ids"]))
    made = on_rows(copy.deepcopy(plain), PORTS)
    found = made(rows)
    torch.testing.assert_close(found[:, :6], wanted["scores"])
    torch.testing.assert_close(found[:, 6:], wanted["trace"].flatten(1))
    assert made.state_dict().keys() == plain.state_dict().keys()
    assert isinstance(made, type(plain))
    torch.testing.assert_close(copy.deepcopy(made)(rows), found)


def test_by_itself_it_takes_its_own_tensors_again():
    made, (given, rows) = on_rows(network(), PORTS), _rows(2)
    before = made(rows)
    with on_tensors(made) as plain:
        assert ports_of(plain) is None
        found = plain(torch.from_numpy(given["signal"]), torch.from_numpy(given["ids"]))
        assert found["scores"].shape == (2, 6)
    assert ports_of(made) == PORTS
    torch.testing.assert_close(made(rows), before)


def test_outputs_are_named_by_their_keys():
    class Nested(nn.Module):
        def forward(self, x):
            return {"logits": x, "more": (x.sum(1), [x[:, :1]])}, x

    ports = Ports((Port("x", (1, 4), "float32"),))
    found = output_ports(Nested(), ports)
    assert found.names == ("output_0_logits", "output_0_more_0", "output_0_more_1_0", "output_1")
    assert output_ports(network(), PORTS) == Ports(
        (Port("scores", (1, 6), "float32"), Port("trace", (1, 3, 12), "float32"))
    )


def test_arguments_of_other_names_go_in_order():
    class Plain(nn.Module):
        def forward(self, a, b):
            return a - b

    ports = Ports((Port("first", (1, 2), "float32"), Port("second", (1, 2), "float32")))
    rows = torch.tensor([[5.0, 6, 1, 2], [0, 0, 1, 1]])
    assert on_rows(Plain(), ports)(rows).tolist() == [[4, 4], [-1, -1]]


def test_samples_without_a_common_batch_axis_run_one_after_the_other():
    class Stateful(nn.Module):
        def forward(self, x, state):
            return x + state.sum(), state * 2

    ports = Ports((Port("x", (1, 2), "float32"), Port("state", (2, 1, 1), "float32")))
    rows = torch.tensor([[1.0, 2, 3, 4], [0, 0, 1, 1]])
    assert on_rows(Stateful(), ports)(rows).tolist() == [[8, 9, 6, 8], [2, 2, 2, 2]]


def test_an_output_without_the_batch_axis_is_of_each_sample_alone():
    class Total(nn.Module):
        def forward(self, x):
            return x.sum()

    ports = Ports((Port("x", (1, 2), "float32"),))
    assert on_rows(Total(), ports)(torch.tensor([[1.0, 2], [3, 4]])).tolist() == [[3], [7]]


@pytest.mark.parametrize(
    ("given", "says"),
    [(lambda x: {"class": x.argmax(1)}, "class as torch.int64"), (str, "no tensor")],
)
def test_what_cannot_be_imitated_is_refused(given, says):
    class Decided(nn.Module):
        def forward(self, x):
            return given(x)

    with pytest.raises(KDError, match=says) as caught:
        output_ports(Decided(), Ports((Port("x", (1, 2), "float32"),)))
    assert caught.value.code == "network-output"
