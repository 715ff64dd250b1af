"""Inheriting without some parts: the layers behind learn to read what is left."""

import copy

import pytest
import torch
from droppable_networks import Digits, ResNet
from torch import nn
from torch.nn.functional import interpolate

from kdcompile.distill.inherit import inherit
from kdcompile.models.channels import trace
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures


def _crops(channels):
    torch.manual_seed(1)
    return [interpolate(torch.randn(4, channels, 5, 5), (16, 16), mode="bicubic") for _ in range(3)]


def _student(teacher, shape, dropped, ratio, tmp_path):
    (architecture,) = architectures(teacher, shape, 4, 0, [ratio])
    gone = {n for n in architecture["modules"] if any(n.startswith(f"{d}.") for d in dropped)}
    modules = {n: v for n, v in architecture["modules"].items() if n not in gone | set(dropped)}
    architecture |= {"modules": modules, "dropped": dropped}
    return student_from_architecture(teacher, architecture, tmp_path).eval(), architecture


def _loss(student, teacher, crops):
    with torch.no_grad():
        made, known = (torch.cat([m(b) for b in crops]) for m in (student, teacher))
    return float((made - known).square().mean() / known.var())


@pytest.mark.parametrize("importance", ["activation", "taylor"])
@pytest.mark.parametrize(
    ("network", "channels", "dropped", "ratio"),
    [
        (Digits, 1, ["8"], 1.0),
        (Digits, 1, ["8"], 0.5),
        (ResNet, 3, ["one.0", "two.1"], 0.5),
    ],
)
def test_what_is_left_is_solved(network, channels, dropped, ratio, importance, tmp_path):
    torch.manual_seed(0)
    teacher, crops = network().eval(), _crops(channels)
    student, architecture = _student(teacher, (1, channels, 16, 16), dropped, ratio, tmp_path)
    fresh = copy.deepcopy(student)
    report = inherit(
        teacher, student, architecture, crops, importance, lambda y, _: y.square().sum()
    )
    names = [layer["name"] for layer in report["layers"]]
    left = [n for n, m in student.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert names == left
    assert all(layer["relative_error"] is not None for layer in report["layers"])
    assert report["sliced"] == []
    assert _loss(student, teacher, crops) < min(0.6, 0.6 * _loss(fresh, teacher, crops))


def test_the_layer_behind_a_linear_convolution_takes_it_over(tmp_path):
    """Two 1x1 convolutions in a row are one: nothing is lost where the ReLU between never acts."""
    torch.manual_seed(0)
    teacher = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()),
        nn.Conv2d(8, 2, 1),
    ).eval()
    teacher[2].weight.data.abs_()  # with the bias, so that its ReLU never acts
    teacher[2].bias.data.fill_(1)
    crops = _crops(1)
    student, architecture = _student(teacher, (1, 1, 16, 16), ["2"], 1.0, tmp_path)
    assert set(trace(student, (1, 1, 16, 16)).layers) == {"0", "4"}
    inherit(teacher, student, architecture, crops)
    assert _loss(student, teacher, crops) < 1e-6
