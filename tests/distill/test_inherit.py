"""Inheriting: every kind of layer is inherited, ties hold, and reconstruction beats slicing."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate
from unshrunk_networks import ConvNeXt, Encoder, Heads, Subclassed, ViT

from kdcompile.core.errors import KDError
from kdcompile.distill.inherit import inherit
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures


def _conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


class Plain(nn.Module):
    """Convolutions, a flattening, two linear layers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = _conv(2, 16), nn.Conv2d(16, 24, 3, stride=2, dilation=2)
        self.fc, self.last = nn.Linear(24 * 9, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.last(self.fc(x.flatten(1)).relu())


class Residual(nn.Module):
    """Batch norms without convolution biases, a residual sum, a strided shortcut, a pooled head."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_bn = _conv(2, 16, bias=False), nn.BatchNorm2d(16)
        self.a, self.a_bn = _conv(16, 16, bias=False), nn.BatchNorm2d(16)
        self.b, self.b_bn = _conv(16, 16, bias=False), nn.BatchNorm2d(16)
        self.c, self.c_bn = _conv(16, 32, stride=2, bias=False), nn.BatchNorm2d(32)
        self.short, self.short_bn = _conv(16, 32, 1, stride=2, bias=False), nn.BatchNorm2d(32)
        self.last = nn.Linear(32, 4)

    def forward(self, x):
        x = self.stem_bn(self.stem(x)).relu()
        x = (x + self.b_bn(self.b(self.a_bn(self.a(x)).relu()))).relu()
        x = (self.c_bn(self.c(x)) + self.short_bn(self.short(x))).relu()
        return self.last(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenations read through batch norms, an upsampled U, a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b = _conv(2, 16), _conv(16, 8, bias=False)
        self.bn, self.c = nn.BatchNorm2d(24), _conv(24, 16, bias=False)
        self.down = _conv(16, 16, stride=2)
        self.up = nn.ConvTranspose2d(16, 8, 3, stride=2, padding=1, output_padding=1)
        self.last = _conv(24, 1, 1)

    def forward(self, x):
        x = self.a(x).relu()
        x = torch.cat([x, self.b(x)], 1)
        x = self.c(self.bn(x).relu())
        return self.last(torch.cat([self.up(self.down(x).relu()), x], 1))


class Separable(nn.Module):
    """Depthwise and grouped convolutions with ReLU6 and ReLU, and circular padding."""

    def __init__(self):
        super().__init__()
        self.a, self.a_bn = _conv(2, 16, padding_mode="circular"), nn.BatchNorm2d(16)
        self.depth, self.depth_bn = _conv(16, 16, groups=16, bias=False), nn.BatchNorm2d(16)
        self.point, self.grouped = _conv(16, 24, 1), _conv(24, 24, groups=3)
        self.last = _conv(24, 2, 1)

    def forward(self, x):
        x = nn.functional.relu6(self.a_bn(self.a(x)))
        x = self.depth_bn(self.depth(x)).relu()
        return self.last(self.grouped(self.point(x).relu()).relu())


class Sequence(nn.Module):
    """Convolutions in one dimension, reflecting, dilated, grouped and transposed."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv1d(2, 16, 5, padding=2, padding_mode="reflect")
        self.b = nn.Conv1d(16, 16, 3, padding="same", groups=2, dilation=2)
        self.up, self.last = nn.ConvTranspose1d(16, 12, 4, stride=2, padding=1), nn.Conv1d(12, 1, 1)

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.last(self.up(x).relu())


NETWORKS = [Plain, Residual, Dense, Separable, Sequence, ConvNeXt, ViT, Heads]
WITH_ATTENTION = [*NETWORKS, Encoder]
TOKENS = (8, 3, 16, 16)
SHAPES = {Plain: (4, 2, 10, 10), Sequence: (4, 2, 40), ConvNeXt: TOKENS, ViT: TOKENS, Heads: TOKENS}
SHAPES[Encoder] = TOKENS


def _teacher(kind, seed=0):
    """Random weights, and batch norms whose statistics and affine parts are not trivial."""
    torch.manual_seed(seed)
    teacher = kind()
    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.2, 0.6)
            module.weight.data.uniform_(-0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    for name, parameter in teacher.named_parameters():
        if "." not in name:  # tables and tokens, which start at zero
            parameter.data.normal_(0, 0.3)
    return teacher.eval()


def _crops(kind, batches=4, seed=1):
    """Smooth images, whose neighbouring pixels are alike as in photos."""
    generator = torch.Generator().manual_seed(seed)
    n, c, *space = SHAPES.get(kind, (4, 2, 12, 12))
    mode = "bilinear" if len(space) == 2 else "linear"
    return [
        interpolate(
            torch.randn(n, c, *(s // 3 for s in space), generator=generator), space, mode=mode
        )
        for _ in range(batches)
    ]


def _student(teacher, crops, ratio, folder, tile=1):
    architecture = architectures(teacher, (1, *crops[0].shape[1:]), tile, 0, [ratio])[0]
    return student_from_architecture(teacher, architecture, folder), architecture


def _error(student, teacher, kind):
    x = torch.cat(_crops(kind, seed=9))
    with torch.no_grad():
        wanted = teacher(x)
        spread = (wanted - wanted.mean(0, keepdim=True)).norm()
        return float((student.eval()(x) - wanted).norm() / spread)


@pytest.mark.parametrize("importance", ["activation", "taylor"])
@pytest.mark.parametrize("kind", WITH_ATTENTION)
def test_at_full_width_the_student_is_the_teacher(kind, importance, tmp_path):
    teacher, crops = _teacher(kind), _crops(kind)
    student, architecture = _student(teacher, crops, 1.0, tmp_path)
    report = inherit(teacher, student, architecture, crops, importance, lambda y, _: y.sum())
    assert _error(student, teacher, kind) < 1e-5
    assert report["sliced"] == []
    for layer in report["layers"]:
        assert layer["kept"] == layer["of"]
        assert (layer["relative_error"] or 0) < 1e-5  # attention is not solved


def _only_slicing(monkeypatch):
    """Inherit without solving anything."""
    monkeypatch.setattr("kdcompile.distill.inherit.solve_layers", lambda *_: ({}, {}))


@pytest.mark.parametrize("kind", NETWORKS)
def test_reconstruction_beats_slicing(kind, tmp_path, monkeypatch):
    teacher, crops = _teacher(kind), _crops(kind, batches=8)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    report = inherit(teacher, student, architecture, crops)
    solved = _error(student, teacher, kind)
    assert all(layer["relative_error"] < 1 for layer in report["layers"] if layer["kept"])
    _only_slicing(monkeypatch)
    inherit(teacher, student, architecture, crops)
    assert solved < min(0.8, 0.7 * _error(student, teacher, kind))


def _chosen(teacher, student, name):
    """Which of the teacher's channels a sliced batch norm holds."""
    theirs = teacher.get_submodule(name).running_mean
    mine = student.get_submodule(name).running_mean
    return (mine[:, None] == theirs[None]).nonzero()[:, 1].tolist()


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_tied_layers_keep_the_same_channels(importance, tmp_path, monkeypatch):
    teacher, crops = _teacher(Residual), _crops(Residual)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    _only_slicing(monkeypatch)
    inherit(teacher, student, architecture, crops, importance, lambda y, _: y.square().sum())
    stem, branch = (_chosen(teacher, student, n) for n in ("stem_bn", "b_bn"))
    assert stem == branch == sorted(stem)
    assert len(stem) == 8
    assert _chosen(teacher, student, "c_bn") == _chosen(teacher, student, "short_bn")


def test_grouped_convolutions_keep_as_many_of_each_group(tmp_path, monkeypatch):
    teacher, crops = _teacher(Separable), _crops(Separable)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    _only_slicing(monkeypatch)
    inherit(teacher, student, architecture, crops)
    theirs, mine = teacher.point.bias, student.point.bias
    chosen = (mine[:, None] == theirs[None]).nonzero()[:, 1]
    assert torch.bincount(chosen // 8).tolist() == [4, 4, 4]


def test_taylor_asks_the_loss_and_activation_the_next_layer(tmp_path, monkeypatch):
    """The task's loss sees only half of what the last layer gives."""
    torch.manual_seed(0)
    teacher = nn.Sequential(_conv(2, 8), nn.ReLU(), _conv(8, 2, 1)).eval()
    with torch.no_grad():
        teacher[2].weight[0, :4] = 0
        teacher[2].weight[1, 4:] = 0
    crops = _crops(Residual)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    _only_slicing(monkeypatch)
    kept = {}
    for output in (0, 1):
        inherit(
            teacher, student, architecture, crops, "taylor", lambda y, _, o=output: y[:, o].sum()
        )
        kept[output] = (student[0].bias[:, None] == teacher[0].bias[None]).nonzero()[:, 1].tolist()
    assert kept == {0: [4, 5, 6, 7], 1: [0, 1, 2, 3]}
    inherit(teacher, student, architecture, crops)
    both = (student[0].bias[:, None] == teacher[0].bias[None]).nonzero()[:, 1].tolist()
    assert {c // 4 for c in both} == {0, 1}


def test_taylor_gives_the_loss_each_batch_index(tmp_path):
    teacher, crops = _teacher(Plain), _crops(Plain, batches=3)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    asked = []

    def loss(output, index):
        asked.append((index, len(output)))
        return output.square().sum()

    inherit(teacher, student, architecture, crops, "taylor", loss)
    assert asked == [(0, 4), (1, 4), (2, 4)]
    assert all(p.grad is None for p in teacher.parameters())


def test_the_same_crops_give_the_same_bits(tmp_path):
    teacher, crops = _teacher(Residual), _crops(Residual)
    states = []
    for _ in range(2):
        student, architecture = _student(teacher, crops, 0.5, tmp_path)
        inherit(teacher, student, architecture, crops)
        states.append(student.state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.mark.parametrize("importance", ["activation", "taylor"])
@pytest.mark.parametrize("kind", [Plain, Residual, Dense])
def test_dead_and_twin_channels_make_no_nan(kind, importance, tmp_path):
    teacher, crops = _teacher(kind), _crops(kind)
    first = next(m for m in teacher.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        first.weight[:6] = 0
        first.weight[7] = first.weight[8]
    student, architecture = _student(teacher, crops, 0.75, tmp_path)
    report = inherit(teacher, student, architecture, crops, importance, lambda y, _: y.sum())
    assert all(torch.isfinite(v).all() for v in student.state_dict().values())
    assert all(layer["relative_error"] < 10 for layer in report["layers"])
    assert _error(student, teacher, kind) < 1


def test_training_mode_starts_where_inference_mode_is(tmp_path):
    """A batch norm's running statistics are what the student feeds it."""
    teacher, crops = _teacher(Residual), _crops(Residual, batches=8)
    images = torch.cat(crops)
    with torch.no_grad():  # a teacher whose statistics are those of these images
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                module.reset_running_stats()
        teacher.train()(images)
    student, architecture = _student(teacher.eval(), crops, 0.5, tmp_path)
    inherit(teacher, student, architecture, crops)
    with torch.no_grad():
        inference = student.eval()(images)
        training = copy.deepcopy(student).train()(images)
    assert (inference - training).norm() < 0.01 * inference.norm()


class Awkward(nn.Module):
    """A layer that runs twice, one used without being called, a layer norm, a free parameter."""

    def __init__(self):
        super().__init__()
        self.a, self.twice = _conv(2, 8), _conv(8, 8)
        self.silent, self.last = _conv(8, 8, 1), nn.Conv2d(8, 1, 1)
        self.norm, self.scale = nn.GroupNorm(1, 2), nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        x = self.twice(self.twice(self.a(self.norm(x))).relu()).relu()
        x = nn.functional.conv2d(x, self.silent.weight, self.silent.bias)
        return self.last(x) * self.scale


def test_what_cannot_be_solved_is_sliced_and_reported(tmp_path):
    teacher, crops = _teacher(Awkward), _crops(Awkward)
    with torch.no_grad():
        teacher.norm.weight.uniform_(0.5, 2)
        teacher.scale.fill_(3.0)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    report = inherit(teacher, student, architecture, crops)
    assert {row["name"]: row["why"] for row in report["sliced"]} == {
        "twice": "it runs 2 times",
        "silent": "its parameters are used without calling it",
    }
    errors = {layer["name"]: layer["relative_error"] for layer in report["layers"]}
    assert errors["twice"] is None
    assert errors["last"] is not None
    assert torch.equal(student.norm.weight, teacher.norm.weight)
    assert student.scale == 3.0


class Silent(nn.Module):
    """A batch norm whose parameters are used without calling it."""

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.last = _conv(2, 8, bias=False), nn.BatchNorm2d(8), _conv(8, 1, 1)

    def forward(self, x):
        bn = self.bn
        x = nn.functional.batch_norm(
            self.a(x), bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps
        )
        return self.last(x.relu())


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_a_batch_norm_that_cannot_be_corrected_shifts_nothing(ratio, tmp_path):
    teacher, crops = _teacher(Silent), _crops(Silent)
    student, architecture = _student(teacher, crops, ratio, tmp_path)
    report = inherit(teacher, student, architecture, crops)
    assert [row["name"] for row in report["sliced"]] == ["bn"]
    assert report["layers"][0]["relative_error"] < 1e-5  # it reads the image, as the teacher does
    assert _error(student, teacher, Silent) < {0.5: 0.9, 1.0: 1e-5}[ratio]


def test_a_layer_with_too_many_unknowns_is_sliced(tmp_path, monkeypatch):
    monkeypatch.setattr("kdcompile.distill.inherit.reconstruct.MOST_UNKNOWNS", 100)
    teacher, crops = _teacher(Plain), _crops(Plain)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    report = inherit(teacher, student, architecture, crops)
    why = "an output reads 108 values, more than 100"
    assert report["sliced"] == [{"name": "fc", "why": why}]


def test_a_report_is_plain_json_and_leaves_the_mode_alone(tmp_path):
    teacher, crops = _teacher(Residual), _crops(Residual)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    student.train()
    report = inherit(teacher, student, architecture, crops)
    assert student.training
    assert not teacher.training
    assert json.loads(json.dumps(report)) == report
    assert report["importance"] == "activation"
    assert report["images"] == 16
    widths = {layer["name"]: (layer["kept"], layer["of"]) for layer in report["layers"]}
    assert widths["c"] == (16, 32)
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in student.modules()
    )
    assert not any(
        module._forward_hooks or module._forward_pre_hooks for module in teacher.modules()
    )


def test_activations_that_are_not_finite(tmp_path):
    teacher, crops = _teacher(Plain), _crops(Plain)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    crops[0][0, 0, 0, 0] = float("inf")
    for importance in ("activation", "taylor"):
        with pytest.raises(KDError) as error:
            inherit(teacher, student, architecture, crops, importance, lambda y, _: y.sum())
        assert error.value.code == "inherit-nonfinite"
        assert "data.mean" in error.value.fix


def test_a_student_of_other_widths_than_the_groups(tmp_path):
    teacher, crops = _teacher(Residual), _crops(Residual)
    student, architecture = _student(teacher, crops, 0.5, tmp_path)
    student.a = _conv(9, 8)
    with pytest.raises(KDError) as error:
        inherit(teacher, student, architecture, crops)
    assert error.value.code == "inherit-mismatch"
    assert "search again" in error.value.fix


def test_a_student_of_another_family(tmp_path):
    teacher, crops = _teacher(Plain), _crops(Plain)
    with pytest.raises(KDError) as error:
        inherit(teacher, _teacher(Plain), {"family": "model.py:small", "seed": 0}, crops)
    assert error.value.code == "inherit-family"
    assert "random" in error.value.fix


def test_layers_that_do_more_than_torchs_are_sliced_and_their_norms_corrected():
    """A subclass's output is not that of its weights alone, so nothing is solved for it."""
    torch.manual_seed(0)
    teacher = Subclassed().eval()
    made = architectures(teacher, (1, 3, 16, 16), 8, 0, [0.5])[0]
    student = student_from_architecture(teacher, made, Path())
    crops = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    report = inherit(teacher, student, made, crops)
    assert [row["name"] for row in report["sliced"]] == ["stem", "deep"]
    assert "a SamePad may do more than its weights say" in report["sliced"][0]["why"]
    solved = {row["name"] for row in report["layers"] if row["relative_error"] is not None}
    assert solved == {"point", "head"}
    kept = {tuple(row) for row in teacher.stem.weight.flatten(1).tolist()}
    assert {tuple(row) for row in student.stem.weight.flatten(1).tolist()} <= kept
    assert torch.isfinite(student.eval()(crops[0])).all()
