"""The staged student: sizes, folding, export at fixed and open sizes, and what is refused."""

import copy
import math

import numpy as np
import pytest
import torch
from staged_designs import architecture, stage
from torch import nn

from kdcompile.core.errors import KDError
from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.models.blocks import BLOCKS, NormedConv, RepConv, fold, inner_width, window
from kdcompile.models.shrunk import OUTPUT_STD, student_from_architecture
from kdcompile.models.staged import StagedStudent
from kdcompile.onnx_graph.session import run_onnx

MIXED = architecture(
    stage("conv", 8),
    stage("separable", 16, 2, 2, "pool"),
    stage("repvgg", 16, 2, 2, "stride"),
    stage("bottleneck", 24, 2, 2, "stride", dilation=2),
)


def trained(settings, seed=0):
    """With statistics and shifts that are not the neutral ones that folding could ignore."""
    torch.manual_seed(seed)
    student = StagedStudent(settings)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return student.eval()


@pytest.mark.parametrize("scale", [1.0, 0.75, 0.5])
@pytest.mark.parametrize("size", [(64, 96), (65, 31), (9, 8)])
def test_a_dense_output_has_the_teachers_size(scale, size):
    student = trained(MIXED | {"input_scale": scale})
    with torch.no_grad():
        output = student(torch.randn(2, 3, *size))
    assert output.shape == (2, 1, *(math.ceil(side / 8) for side in size))


def test_stages_chain_and_end_in_relu():
    student = trained(MIXED)
    x, side = torch.randn(1, 3, 40, 40), 40
    with torch.no_grad():
        whole = student(x)
        for each, settings in zip(student.stages, MIXED["stages"], strict=True):
            x = each(x)
            side //= settings["stride"]
            assert x.shape == (1, settings["width"], side, side)
            assert x.min() == 0 < x.max()
        assert torch.equal(student.head(x), whole)


def test_more_pixels_than_asked_are_resized_by_interpolation():
    settings = architecture(stage(width=8, stride=4), stage(width=8, stride=4))
    student = trained(settings)
    assert student(torch.randn(1, 3, 64, 64)).shape == (1, 1, 8, 8)
    with torch.no_grad():
        student.head.weight.zero_()
        student.head.bias.fill_(0.25)
    assert torch.allclose(student(torch.randn(1, 3, 64, 64)), torch.tensor(0.25))


def test_a_pooled_head_classifies():
    settings = architecture(stage(stride=2), head="pooled", out_channels=10)
    student = trained(settings)
    image = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        means = student.stages[0](image).mean((2, 3))
        linear = student.head[-1]
        assert torch.allclose(student(image), linear(means), atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("block", list(BLOCKS))
def test_folding_keeps_the_output_and_leaves_no_normalisation(block, stride, dilation):
    settings = architecture(
        stage(block, 8, 2, stride, "stride", dilation), output_stride=stride, in_channels=8
    )
    student = trained(settings)
    image = torch.randn(2, 8, 21, 16)
    with torch.no_grad():
        expected = student(image)
        folded = fold(copy.deepcopy(student))
        assert torch.allclose(folded(image), expected, rtol=1e-4, atol=1e-5)
    left = {type(m) for m in folded.modules()}
    assert not left & {nn.BatchNorm2d, NormedConv, RepConv}
    convolutions = sum(isinstance(m, nn.Conv2d) for m in folded.modules())
    assert convolutions == 1 + 2 * {"conv": 1, "separable": 2, "repvgg": 1, "bottleneck": 3}[block]
    assert fold(folded) is folded


def test_a_folded_identity_is_worked_out_by_hand():
    rep = RepConv(2, 2, window(1, 1)).eval()
    with torch.no_grad():
        rep.wide.convolution.weight.fill_(1)
        rep.point.convolution.weight.fill_(2)
        for norm in (rep.wide.norm, rep.point.norm, rep.identity):
            norm.eps = 0.0
            norm.running_var.fill_(4)
            norm.bias.fill_(3)
    folded = rep.folded()
    expected = torch.full((2, 2, 3, 3), 0.5)
    expected[:, :, 1, 1] = torch.tensor([[2.0, 1.5], [1.5, 2.0]])  # 1/2 + 2/2, and 1/2 where i = j
    assert torch.allclose(folded.weight, expected)
    assert torch.allclose(folded.bias, torch.full((2,), 9.0))


def test_a_bottleneck_adds_its_input():
    settings = architecture(stage("bottleneck", 16, 2), output_stride=1)
    student = trained(settings)
    first, second = student.stages[0]
    assert not first.adds  # 3 channels before, 16 after
    assert second.adds
    nn.init.zeros_(second.expand.norm.weight)
    nn.init.zeros_(second.expand.norm.bias)
    image = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        before = first(image)
        assert torch.equal(second(before), before)
    assert [inner_width(n) for n in (8, 16, 24, 40, 48)] == [8, 8, 16, 24, 24]


def test_an_exported_student_gives_the_same_at_every_size(tmp_path):
    stages = stage("repvgg", 8, 1, 4, "stride"), stage("conv", 8, 1, 2, "pool")
    student = fold(trained(architecture(*stages, input_scale=0.75)))
    shapes = ([1, 3, 40, 40], [1, 3, 64, 64], [2, 3, 96, 96])
    model = onnx_from_module(student, tmp_path / "s.onnx", shapes, max_opset=17, ir_version=8)
    assert {n.op_type for n in model.graph.node} >= {"Conv", "Relu", "MaxPool", "Resize"}
    assert "BatchNormalization" not in {n.op_type for n in model.graph.node}
    for size in ((1, 3, 45, 83), (2, 3, 96, 41)):
        image = np.random.default_rng(0).standard_normal(size, dtype=np.float32)
        with torch.no_grad():
            expected = student(torch.from_numpy(image)).numpy()
        assert np.allclose(run_onnx(model, image), expected, rtol=1e-3, atol=1e-4)


def test_the_architecture_alone_decides_the_start(tmp_path):
    teacher = nn.Identity()  # of which nothing is used
    state = torch.random.get_rng_state()
    one, two = (student_from_architecture(teacher, MIXED, tmp_path) for _ in range(2))
    other = student_from_architecture(teacher, MIXED | {"seed": 1}, tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(one, StagedStudent)
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.head.weight, other.head.weight)
    assert one.head.weight.std() < 3 * OUTPUT_STD


def test_a_student_trains():
    torch.manual_seed(0)
    student = StagedStudent(MIXED)
    student.train()(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize(
    ("settings", "code", "fix"),
    [
        (architecture(stage("convv")), "architecture-invalid", "conv, separable"),
        (architecture(stage(stride=3)), "architecture-invalid", "1, 2, 4"),
        (architecture(stage(width=0)), "architecture-invalid", "1 or more"),
        (architecture(stage(), input_scale=0.6), "architecture-invalid", "1.0, 0.75, 0.5"),
        (architecture({"block": "conv"}), "architecture-invalid", "dilation"),
        (architecture(stage(stride=4)), "architecture-stride", "at least 8"),
        (architecture(stage(stride=4), input_scale=0.75), "architecture-stride", "at least 8"),
    ],
)
def test_refused_architectures(settings, code, fix):
    with pytest.raises(KDError) as error:
        StagedStudent(settings)
    assert error.value.code == code
    assert fix in error.value.fix
