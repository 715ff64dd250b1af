"""Shrinking keeps a network's inputs, outputs and ties between channels."""

import pytest
import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate
from unshrunk_networks import ConvNeXt, ViT

from kdcompile.core.errors import KDError
from kdcompile.models.csrnet import build
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures


class Residual(nn.Module):
    """Batch norm, a depthwise convolution, a residual sum, a gate, a concatenation, a head."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.c, self.d = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 1)
        self.e, self.gate = nn.Conv2d(32, 48, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.f, self.up = nn.Conv2d(80, 64, 1), nn.ConvTranspose2d(64, 16, 2, stride=2)
        self.fc, self.last = nn.Linear(16 * 4, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.b(self.a(x)).relu()
        x = x + self.d(self.c(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        x = self.up(self.f(torch.cat([x, self.e(x)], 1)))
        x = adaptive_avg_pool2d(interpolate(x, scale_factor=2), 2).flatten(1)
        return self.last(self.fc(x).relu())


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 24, 3), nn.Conv2d(24, 36, 3, groups=3)
        self.c = nn.Conv2d(36, 2, 1)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Unknown(nn.Module):
    """The order of its channels is turned round: no rule covers it, so they stay."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 1, 1)

    def forward(self, x):
        return self.c(self.b(self.a(x).flip(1)).relu())


class Shuffled(nn.Module):
    """A channel shuffle of two groups, which stay as wide as each other."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 1, 1)

    def forward(self, x):
        x = self.a(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.c(self.b(x).relu())


class Twice(nn.Module):
    """One layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 32, 1), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 1, 1)

    def forward(self, x):
        return self.c(self.b(self.b(self.a(x))))


class Cut(nn.Module):
    """A gate of two halves, the first channels alone convolved, halves that are added crosswise."""

    def __init__(self):
        super().__init__()
        self.wide, self.part = nn.Conv2d(3, 64, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.cross, self.norm = nn.Conv2d(32, 32, 1), nn.LayerNorm(32)
        self.last = nn.Conv2d(32, 2, 1)

    def forward(self, x):
        a, gate = self.wide(x).chunk(2, 1)
        x = self.part(a * gate.sigmoid())
        half = x.shape[1] // 2
        x = torch.cat([x[:, half:], x[:, :half]], 1) + self.cross(x)
        return self.last(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def _shrunk(model, shape, ratio, tile, folder):
    model = model.eval()
    architecture = architectures(model, shape, tile, 0, [ratio])[0]
    student = student_from_architecture(model, architecture, folder).eval()
    return student, architecture["modules"]


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.4, 0.77, 1.0])
@pytest.mark.parametrize("tile", [1, 8, 16])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (Residual, (2, 3, 16, 16)),
        (Grouped, (1, 1, 9, 9)),
        (Unknown, (1, 1, 4, 4)),
        (Shuffled, (1, 1, 4, 4)),
        (Twice, (1, 1, 4, 4)),
        (ConvNeXt, (2, 3, 16, 16)),
        (ViT, (2, 3, 16, 16)),
        (Cut, (1, 3, 8, 8)),
    ],
)
def test_every_width_runs_with_the_same_output_shape(kind, shape, ratio, tile, tmp_path):
    teacher = kind()
    student, _ = _shrunk(teacher, shape, ratio, tile, tmp_path)
    x = torch.randn(*shape)
    assert student(x).shape == teacher(x).shape


def test_ties_and_tiles(tmp_path):
    _, modules = _shrunk(Residual(), (2, 3, 16, 16), 0.5, 8, tmp_path)
    assert modules["a"] == {"in_channels": 3, "out_channels": 16, "groups": 1}
    assert modules["b"] == {"num_features": 16}
    assert modules["c"] == {"in_channels": 16, "out_channels": 16, "groups": 16}
    assert modules["f"] == {"in_channels": 16 + 24, "out_channels": 32, "groups": 1}
    assert modules["fc"] == {"in_features": 8 * 4, "out_features": 16}
    assert modules["last"]["out_features"] == 5


def test_channels_that_are_cut_are_made_smaller(tmp_path):
    """Both halves of a gate alike, and of halves that are exchanged each as wide as the other."""
    _, modules = _shrunk(Cut(), (1, 3, 8, 8), 0.5, 8, tmp_path)
    assert modules["wide"]["out_channels"] == 32
    assert modules["part"] == {"in_channels": 16, "out_channels": 16, "groups": 1}
    assert modules["norm"] == {"normalized_shape": 16}


def test_grouped_convolutions_stay_divisible(tmp_path):
    _, modules = _shrunk(Grouped(), (1, 1, 9, 9), 0.3, 1, tmp_path)
    assert modules["b"]["groups"] == 3
    assert modules["b"]["in_channels"] % 3 == modules["b"]["out_channels"] % 3 == 0
    assert modules["b"]["in_channels"] < 24


def test_an_unknown_operator_keeps_its_channels(tmp_path):
    _, modules = _shrunk(Unknown(), (1, 1, 4, 4), 0.25, 8, tmp_path)
    assert modules["a"]["out_channels"] == 32
    assert modules["b"] == {"in_channels": 32, "out_channels": 8, "groups": 1}


def test_a_channel_shuffle_is_made_smaller(tmp_path):
    _, modules = _shrunk(Shuffled(), (1, 1, 4, 4), 0.5, 8, tmp_path)
    assert modules["b"] == {"in_channels": 16, "out_channels": 16, "groups": 1}


def test_quarter_csrnet_is_the_published_student(tmp_path):
    student, modules = _shrunk(build(), (1, 3, 64, 64), 0.25, 16, tmp_path)
    assert sum(p.numel() for p in student.parameters()) == 1_017_681
    widths = [v["out_channels"] for v in modules.values()]
    assert widths == [16, 16, 32, 32, 64, 64, 64, *[128] * 6, 64, 32, 16, 1]


def test_the_same_seed_gives_the_same_student(tmp_path):
    teacher = Twice().eval()
    one, two = (
        architectures(teacher, (1, 1, 4, 4), 8, 3, [0.5]),
        architectures(teacher, (1, 1, 4, 4), 8, 4, [0.5]),
    )
    weights = [student_from_architecture(teacher, a[0], tmp_path).b.weight for a in (one, one, two)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_teacher_that_cannot_be_traced():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(KDError) as error:
        architectures(Branching(), (1, 1, 4, 4), 8, 0)
    assert error.value.code == "trace-failed"
    assert "student.family" in error.value.fix
