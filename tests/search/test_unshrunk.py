"""A student that keeps more of its teacher than requested is refused, by name; others are not."""

import itertools

import pytest
import torch
from torch import nn
from unshrunk_networks import (
    ConvNeXt,
    Encoder,
    HardCoded,
    Heads,
    Masked,
    NormAct,
    Recurrent,
    Remembering,
    Subclassed,
    ViT,
    between,
)

from kdcompile.config.spec import Budget
from kdcompile.core.errors import KDError
from kdcompile.models.channel_groups import ENDS
from kdcompile.models.channels import trace
from kdcompile.models.csrnet import build
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.frozen import frozen
from kdcompile.search.spaces.pruned import students
from kdcompile.search.unshrunk import refuse_unshrunk

SHAPE = (1, 3, 16, 16)


def _judge(teacher, width=0.5, shape=SHAPE, tile=8):
    """The architecture at a width, and what is said of it."""
    channels = trace(teacher.eval(), shape)
    (made,) = students(channels, tile, 0, [width])
    return made, refuse_unshrunk(teacher, channels, made, width, tile, Budget(width=width))


def _params(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("kind", "named", "why"),
    [
        (Recurrent, "cell", "there is no rule for GRUCell"),
        (HardCoded, "narrow", "the network's own code asks for this width (shape '[1, 32, 16]'"),
    ],
)
@pytest.mark.parametrize("width", [0.25, 0.5, 0.75])
def test_a_network_that_keeps_its_widths_is_refused_with_its_modules_and_why(
    kind, named, why, width
):
    with pytest.raises(KDError) as error:
        _judge(kind(), width)
    found = error.value
    assert found.code == "student-not-smaller"
    assert f"width = {width} was requested" in found.message
    assert "of the teacher's weights" in found.message
    assert f"{named} (" in found.message
    assert why in found.message
    assert 'student.family = "student.py:build"' in found.fix


def test_a_long_list_of_modules_ends_in_a_count():
    class Flipped(nn.Conv2d):
        def forward(self, x):
            return super().forward(x).flip(1)

    with pytest.raises(KDError, match="; and 2 more"):
        _judge(nn.Sequential(*(Flipped(3 if n == 0 else 16, 16, 1) for n in range(5))))


def test_a_network_that_gives_what_it_carries_from_layer_to_layer_is_refused():
    """Tokens as wide as the output: only what is between the layers gets narrower."""

    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 32, 8, stride=8)
            self.mix, self.widen, self.narrow = (
                nn.Linear(*size) for size in ((32, 32), (32, 64), (64, 32))
            )

        def forward(self, image):
            x = self.patch(image).flatten(2).transpose(1, 2)
            x = x + self.mix(x)
            return x + self.narrow(self.widen(x).relu())

    with pytest.raises(KDError, match=r"patch \(it is an input or output of the network\)"):
        _judge(Features())


def test_a_width_of_one_asks_for_nothing():
    assert _judge(HardCoded(), 1.0)[0]["modules"]


@pytest.mark.parametrize(("kind", "share"), [(ConvNeXt, 0.3), (ViT, 0.37)])
def test_a_network_of_tokens_is_made_smaller_everywhere(kind, share, tmp_path):
    teacher = kind(64).eval()
    made, held = _judge(teacher)
    student = student_from_architecture(teacher, made, tmp_path).eval()
    assert _params(student) < share * _params(teacher)
    assert student(torch.randn(2, *SHAPE[1:])).shape == (2, 4)
    assert [name for name in ("qkv", "project") if held and name in held[0]] == []


@pytest.mark.parametrize(
    ("fixed", "qkv", "project"), [(0, (32, 96), (32, 32)), (16, (32, 96), (32, 32))]
)
def test_heads_get_smaller_where_the_code_takes_their_size_from_its_input(
    fixed, qkv, project, tmp_path
):
    """Or from an attribute, which follows."""
    teacher = Heads(fixed=fixed).eval()
    for width in (0.5, 0.25, 0.4):
        made = students(trace(teacher, SHAPE), 8, 0, [width])[0]
        student = student_from_architecture(teacher, made, tmp_path).eval()
        assert student(torch.randn(2, *SHAPE[1:])).shape == (2, 4)
    made, _ = _judge(teacher)
    assert tuple(made["modules"]["qkv"].values()) == qkv
    assert tuple(made["modules"]["project"].values()) == project


class Embedding(Heads):
    """Its tokens are what it gives: they stay as wide as they are."""

    def __init__(self, fixed: int) -> None:
        super().__init__(fixed=fixed)
        self.head = nn.Identity()


def test_heads_of_a_network_that_gives_its_tokens_get_smaller_by_their_own_numbers():
    made = students(trace(Embedding(16).eval(), SHAPE), 8, 0, [0.5])[0]["modules"]
    assert made["qkv"] == {"in_features": 64, "out_features": 96}
    assert made["project"] == {"in_features": 32, "out_features": 64}


def test_heads_that_are_as_wide_as_the_output_say_so():
    teacher = Embedding(0).eval()
    reasons = {row["module"]: row["reason"] for row in frozen(teacher, trace(teacher, SHAPE))}
    assert reasons["project"] == ENDS
    assert reasons["qkv"] == (
        f"its heads are together as wide as what it reads, which stays: {ENDS}"
    )


def test_torchs_own_attention_gets_narrower_heads_and_attributes_follow(tmp_path):
    teacher = Encoder().eval()
    made, _ = _judge(teacher)
    assert made["modules"]["layer.self_attn"] == {"embed_dim": 32}
    assert made["attributes"] == {"": {"width": 32}}
    for width in (0.5, 0.3, 0.8):
        made = students(trace(teacher, SHAPE), 8, 0, [width])[0]
        student = student_from_architecture(teacher, made, tmp_path).eval()
        assert student.layer.self_attn.embed_dim % 4 == 0
        assert student(torch.randn(2, *SHAPE[1:])).shape == (2, 4)
    assert teacher.width == 64


def test_a_number_that_only_happens_to_equal_a_width_stays():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.width = 32, 32
            self.first, self.last = nn.Conv2d(3, 32, 1), nn.Linear(32, 4)

        def forward(self, x):
            return self.last(self.first(x).reshape(len(x), self.width, -1).mean(2)) / self.seen

    made, _ = _judge(Counting())
    assert made["attributes"] == {"": {"width": 16}}


def test_position_tables_and_tokens_are_as_wide_as_what_they_are_added_to(tmp_path):
    made, _ = _judge(ViT(64))
    assert made["parameters"] == {"position": [2, 32], "token": [2, 32]}
    student = student_from_architecture(ViT(64).eval(), made, tmp_path)
    assert student.position.shape == (1, 5, 32)
    assert student.token.requires_grad


@pytest.mark.parametrize(("kind", "shape"), [(Subclassed, SHAPE), (build, (1, 3, 64, 64))])
def test_networks_of_known_layers_never_are(kind, shape):
    teacher = kind().eval()
    channels = trace(teacher, shape)
    for tile, width in itertools.product((1, 8, 16, 32), (0.1, 0.25, 0.5, 0.75)):
        made = students(channels, tile, 0, [width])[0]
        assert refuse_unshrunk(teacher, channels, made, width, tile, Budget(width=width)) == []


def test_subclasses_of_torchs_layers_are_resized_and_keep_what_they_add(tmp_path):
    teacher = Subclassed().eval()
    made, _ = _judge(teacher)
    student = student_from_architecture(teacher, made, tmp_path).eval()
    assert _params(student) < 0.4 * _params(teacher)
    assert [type(m) for m in student.modules()] == [type(m) for m in teacher.modules()]
    assert isinstance(student.norm.act, nn.SiLU)
    assert student.deep.groups == student.deep.weight.shape[0] == 16
    assert student.norm.num_features == 16
    assert student(torch.randn(2, 3, 16, 16)).shape == (2, 4)
    assert (student.last(torch.randn(1, 32, 4, 4)) >= 0).all()
    assert teacher.deep.groups == 32  # the teacher is as it was


def test_a_subclass_starts_anew_like_the_layer_itself(tmp_path):
    teacher = Subclassed().eval()
    teacher.norm.running_mean.fill_(3.0)
    made, _ = _judge(teacher)
    one, two = (student_from_architecture(teacher, made, tmp_path) for _ in range(2))
    assert torch.equal(one.stem.weight, two.stem.weight)
    assert (one.norm.running_mean == 0).all()
    assert one.stem.weight.requires_grad


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Masked, "Masked has tensors that a Conv2d has not (mask)"),
        (Remembering, "Remembering does not run at other widths"),
    ],
)
def test_a_subclass_that_cannot_be_resized_safely_keeps_its_width(kind, why, tmp_path):
    teacher = between(kind).eval()
    channels = trace(teacher, SHAPE)
    made = students(channels, 8, 0, [0.5])[0]
    student = student_from_architecture(teacher, made, tmp_path).eval()
    assert student(torch.zeros(SHAPE)).shape == teacher(torch.zeros(SHAPE)).shape
    assert student[1].weight.shape == teacher[1].weight.shape
    with pytest.raises(KDError, match=r"1 \(") as error:
        refuse_unshrunk(teacher, channels, made, 0.5, 8, Budget(width=0.5))
    assert why in error.value.message


class Beside(nn.Module):
    """A branch that halves, and beside it one of `kept` channels that keeps its width."""

    def __init__(self, kept):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 100, 1), nn.Conv2d(100, 100, 1)
        self.before, self.fixed = nn.Conv2d(3, kept, 1), nn.Conv2d(kept, kept, 1)
        self.last, self.other = nn.Conv2d(100, 1, 1), nn.Conv2d(kept, 1, 1)

    def forward(self, x):
        fixed = self.fixed(self.before(x).flip(1)).flip(1)
        return self.last(self.second(self.first(x))) + self.other(fixed)


def test_a_tenth_of_the_reduction_may_be_missed_and_no_more():
    """Of an exact half: these two reach 0.907 and 0.8997 of the reduction."""
    _, held = _judge(Beside(31), tile=1)
    assert held[0].startswith("modules with 10% of the teacher's weights keep its width: fixed (")
    assert "flip" in held[0]
    with pytest.raises(KDError, match=r"keeps 34% of the teacher's weights"):
        _judge(Beside(32), tile=1)


class Turned(nn.Module):
    """A trunk that an operator without a rule holds, and branches of it that are narrow inside."""

    def __init__(self, blocks=4):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 2, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 1))
            for _ in range(blocks)
        )

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            left, right = x.chunk(2, 1)
            x = torch.cat((left, branch(right)), 1).flip(1)
        return self.last(x)


def test_layers_that_are_narrower_on_one_of_two_sides_are_refused_and_named():
    """Half of their weights go, where three quarters of a layer between two others can."""
    with pytest.raises(KDError, match=r"where 3\d% is the most") as error:
        _judge(Turned())
    assert "branches.0.0 (it reaches flip" in error.value.message
    assert "branches.0.2 (it reaches flip" in error.value.message


def test_a_network_that_is_small_but_as_slow_is_refused():
    """Almost all multiply-adds are of a part that keeps its width, almost all weights are not."""

    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.fixed = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.deep, self.head = nn.Conv2d(16, 256, 1), nn.Linear(256, 256)
            self.last = nn.Linear(256, 2)

        def forward(self, x):
            x = self.deep(self.fixed(self.first(x).flip(1)).flip(1))
            return self.last(self.head(x.mean((2, 3))))

    with pytest.raises(KDError, match="of the teacher's multiply-adds"):
        _judge(Slow(), shape=(1, 3, 32, 32))


def test_a_norm_that_activates_is_read_by_both_of_its_readers(tmp_path):
    """Its channels are those of the convolution before it."""
    net = nn.Sequential(nn.Conv2d(3, 32, 1), NormAct(32), nn.Conv2d(32, 2, 1)).eval()
    made, held = _judge(net)
    assert made["modules"]["1"] == {"num_features": 16}
    assert held == []
