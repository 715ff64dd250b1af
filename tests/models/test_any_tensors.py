"""Networks of any tensors in and out are traced, made narrower and inherited from."""

import hand_networks
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from kdcompile.config.spec import Budget
from kdcompile.distill.inherit import inherit
from kdcompile.models.channel_groups import ENDS
from kdcompile.models.channels import trace
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import students
from kdcompile.search.unshrunk import refuse_unshrunk


def _narrowed(teacher, inputs, width, folder):
    channels = trace(teacher, inputs)
    (made,) = students(channels, 8, 0, [width])
    return channels, made, student_from_architecture(teacher, made, folder).eval()


def _outputs(network, inputs):
    with torch.no_grad():
        return tree_leaves(network(*inputs))


def _params(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", hand_networks.NAMES)
def test_everything_inside_is_resized(name, tmp_path):
    teacher, inputs = hand_networks.network(name)
    channels, made, student = _narrowed(teacher, inputs, 0.5, tmp_path)
    assert {*channels.why.values()} == {ENDS}
    assert channels.fixed == {}
    assert _params(student) < 0.3 * _params(teacher)
    assert refuse_unshrunk(teacher, channels, made, 0.5, 8, Budget(width=0.5)) == []
    shapes = [[value.shape for value in _outputs(net, inputs)] for net in (teacher, student)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("name", "importance"),
    [("clips", "activation"), ("gru_states", "activation"), ("two_inputs", "activation"),
     ("lstm_both", "taylor"), ("words", "taylor"), ("two_inputs", "taylor")],
)  # fmt: skip
def test_a_student_of_the_teachers_widths_inherits_all_of_it(name, importance, tmp_path):
    teacher, inputs = hand_networks.network(name)
    _, made, student = _narrowed(teacher, inputs, 1.0, tmp_path)
    given = inputs if len(inputs) > 1 else inputs[0]
    report = inherit(
        teacher,
        student,
        made,
        [given],
        importance,
        lambda y, _: sum(v.sum() for v in tree_leaves(y)),
    )
    assert report["images"] == 1
    for theirs, own in zip(_outputs(teacher, inputs), _outputs(student, inputs), strict=True):
        assert torch.allclose(theirs, own, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize(("kind", "both"), [(nn.LSTM, True), (nn.GRU, False), (nn.RNN, True)])
def test_the_hidden_units_that_do_nothing_are_left_out(kind, both, tmp_path):
    """Of every gate, layer and direction; the others give what they gave."""
    torch.manual_seed(0)
    teacher = hand_networks.Recurrent(kind, both, 16).eval()
    teacher.norm = nn.Identity()
    teacher.norm(torch.zeros(1))
    live = torch.tensor([1, 3, 4, 7, 8, 11, 12, 14])
    dead = torch.ones(16, dtype=torch.bool)
    dead[live] = False
    with torch.no_grad():
        for name, value in teacher.cell.named_parameters():
            value.mul_(2)
            value[dead.repeat(len(value) // 16)] = 0
            if "hh" in name and value.ndim == 2:
                value[:, dead] = 0
    crops = torch.randn(32, 12, 40)
    _, made, student = _narrowed(teacher, (crops[:1],), 0.5, tmp_path)
    assert student.cell.hidden_size == 8
    inherit(teacher, student, made, [crops])
    assert torch.allclose(teacher.cell(crops)[0].reshape(32, 12, -1, 16)[..., live].flatten(2),
                          student.cell(crops)[0], atol=1e-6)  # fmt: skip
    assert torch.allclose(teacher(crops), student(crops), atol=1e-3)


class FirstNorm(nn.LayerNorm):
    """A layer norm of axis 1: its forward transposes."""

    def forward(self, x):
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_a_norm_whose_forward_transposes_is_solved(width, tmp_path):
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 16, 3), FirstNorm(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    teacher = nn.Sequential(*layers).eval()
    nn.init.uniform_(teacher[1].weight)
    x = torch.randn(4, 3, 9, 9)
    _, made, student = _narrowed(teacher, (x[:1],), width, tmp_path)
    report = inherit(teacher, student, made, [x])
    assert report["sliced"] == []
    assert torch.allclose(student(x), teacher(x), atol=1e-5) == (width == 1)


def test_a_state_that_the_network_learns_follows(tmp_path):
    class Started(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.GRU(8, 32), nn.Linear(32, 8)
            self.start = nn.Parameter(torch.randn(1, 1, 32))

        def forward(self, x):
            return self.head(self.cell(x, self.start.expand(-1, x.shape[1], -1))[0])

    teacher, inputs = Started().eval(), (torch.randn(5, 2, 8),)
    _, made, student = _narrowed(teacher, inputs, 0.5, tmp_path)
    assert made["parameters"] == {"start": [2, 16]}
    assert student(*inputs).shape == (5, 2, 8)


def test_weights_that_two_modules_share_keep_their_width(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(20, 32), nn.Linear(32, 20, bias=False)
            self.head.weight = self.words.weight
            self.inner, self.outer = nn.Linear(32, 64), nn.Linear(64, 32)

        def forward(self, ids):
            x = self.words(ids)
            return self.head(x + self.outer(self.inner(x).relu()))

    teacher, inputs = Tied().eval(), (torch.tensor([[1, 2, 3]]),)
    channels, made, student = _narrowed(teacher, inputs, 0.5, tmp_path)
    assert channels.fixed["words"] == "it shares its weights with head"
    assert made["modules"]["inner"] == {"in_features": 32, "out_features": 32}
    assert student(*inputs).shape == (1, 3, 20)
