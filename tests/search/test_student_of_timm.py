"""A student `timm:NAME`: its outputs and inputs follow the teacher and the spec."""

import sys
from types import SimpleNamespace

import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.given_student import given_architecture


def _create(name, pretrained, num_classes, in_chans, **more):
    """A network of any input size, and one that is made for a size."""
    assert not pretrained
    if name == "convnet":
        if more:
            raise TypeError("unexpected keyword argument 'img_size'")
        pooled = nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(
            nn.Conv2d(in_chans, 4, 3), pooled, nn.Flatten(), nn.Linear(4, num_classes)
        )
    height, width = more["img_size"]
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * height * width, num_classes))


@pytest.fixture
def _timm(monkeypatch):
    fake = SimpleNamespace(list_models=lambda: ["convnet", "vit"], create_model=_create)
    monkeypatch.setitem(sys.modules, "timm", fake)


def _architecture(name):
    student = SimpleNamespace(init="random", family=name, weights=None)
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 7])
    model = SimpleNamespace(graph=SimpleNamespace(output=[output]))
    teacher = SimpleNamespace(model=model, shape=[1, 2, 8, 6])
    return given_architecture(SimpleNamespace(student=student, seed=3), teacher)


@pytest.mark.usefixtures("_timm")
@pytest.mark.parametrize(
    ("name", "more"), [("timm:convnet", {}), ("timm:vit", {"img_size": [8, 6]})]
)
def test_it_has_the_teachers_outputs_and_the_inputs_of_the_export(name, more, tmp_path):
    found = _architecture(name)
    arguments = {"num_classes": 7, "in_chans": 2} | more
    assert found == {"family": name, "width": 1.0, "seed": 3, "arguments": arguments}
    students = [student_from_architecture(nn.Identity(), found, tmp_path) for _ in range(2)]
    x = torch.ones(1, 2, 8, 6)
    assert students[0](x).shape == (1, 7)
    assert torch.equal(students[0](x), students[1](x))


@pytest.mark.usefixtures("_timm")
def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(KDError, match="did you mean 'convnet'") as caught:
        _architecture("timm:convnett")
    assert caught.value.code == "timm-unknown"


def test_without_timm_the_pip_line_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ToolMissingError) as caught:
        _architecture("timm:convnet")
    assert caught.value.code == "timm-missing"
    assert caught.value.fix.startswith("pip install")
