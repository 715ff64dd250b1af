"""Networks passed as objects: what their names in a spec and their weights' files depend on."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kdcompile.core.content import described
from kdcompile.core.errors import KDError
from kdcompile.models.factory import build_model, load_weights
from kdcompile.models.given import register, written

FACTOR = 2


def scaled(x):
    return x * FACTOR


class Net(nn.Module):
    """With what a hash must see: code, a function that it calls, attributes, a loose buffer."""

    def __init__(self, gain=1.0, kinds=("a", "b")):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.gain, self.kinds, self.act = gain, set(kinds), torch.relu
        self.register_buffer("shift", torch.zeros(1), persistent=False)

    def forward(self, x):
        return scaled(self.act(self.conv(x)) * self.gain) + self.shift


def loosened(network):
    network.shift += 1
    return network


def hooked(network):
    network.register_forward_hook(lambda *_: None)
    return network


def rectified(network):
    network.act = torch.sigmoid
    return network


def test_the_name_is_of_the_architecture_and_not_of_the_weights(tmp_path):
    first, second = Net(), Net()
    assert register(first, "") == register(second, "")
    files = {written(one, tmp_path) for one in (first, second, first)}
    assert len(files) == 2
    state = torch.nn.Module.state_dict(first)
    loaded = build_model(register(first, ""), tmp_path)
    assert load_weights(loaded, written(first, tmp_path)) == {}
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize(
    "other",
    [lambda: Net(gain=2.0), lambda: Net(kinds="ac"), lambda: loosened(Net()),
     lambda: hooked(Net()), lambda: rectified(Net()), lambda: nn.Conv2d(1, 2, 3)],
)  # fmt: skip
def test_another_architecture_has_another_name(other):
    assert register(Net(), "") != register(other(), "")
    assert register(other(), "") == register(other(), "")


def test_a_changed_helper_and_the_callers_version_change_the_name(monkeypatch):
    before = register(Net(), "1")
    assert register(Net(), "2") != before
    monkeypatch.setitem(globals(), "FACTOR", 3)
    changed = register(Net(), "1")
    assert changed != before
    monkeypatch.setitem(globals(), "scaled", lambda x: x - FACTOR)
    assert register(Net(), "1") not in (before, changed)


def test_what_is_built_is_a_copy_of_the_network_as_it_was_passed():
    network = Net()
    name = register(network, "")
    network.gain = 5.0
    first, second = (build_model(name, Path()) for _ in range(2))
    assert first is not second
    assert first.gain == second.gain == 1.0
    assert not first.training
    assert network.training


def test_every_process_gives_the_same_name_and_only_the_passing_one_has_the_network(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_given_networks import *\nprint(register(Net(), ''))"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True,
            text=True, check=True, env={"PYTHONHASHSEED": seed},
        ).stdout.strip()
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(names) == 1
    with pytest.raises(KDError, match="no other process has") as caught:
        build_model("kdcompile.models.given:Net_0123456789abcdef", tmp_path)
    assert caught.value.code == "object-missing"
    assert "again" in caught.value.fix


def test_a_network_that_cannot_be_copied_is_refused():
    network = Net()
    network.last = network.conv(torch.zeros(1, 1, 3, 3))
    with pytest.raises(KDError, match="copied") as caught:
        register(network, "")
    assert caught.value.code == "object-refused"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2], [2, 1]), ((1,), [1]), ({"a": 1}, {"a": 2}), (torch.zeros(2), torch.ones(2)),
        (torch.float16, torch.float32), (torch.zeros(1).bfloat16(), torch.zeros(1).half()),
        (lambda x: x + 1, lambda x: x + 2), (lambda x: x.real, lambda x: x.imag),
        (lambda x, k=1: x, lambda x, k=2: x), (nn.ReLU, nn.GELU),
    ],
)  # fmt: skip
def test_descriptions_differ_where_the_content_does(first, second):
    assert described(first) == described(first)
    assert described(first) != described(second)


def test_a_network_without_values_is_refused(tmp_path):
    with pytest.raises(KDError, match="written") as caught:
        written(nn.Linear(2, 2, device="meta"), tmp_path)
    assert caught.value.code == "object-refused"


def test_objects_that_are_shared_are_told_apart():
    one, two = [1], [2]
    assert described([one, two, one]) != described([one, two, two])


def test_an_object_that_holds_itself_is_described():
    found = []
    found.append(found)
    assert described(found) == described(found)
