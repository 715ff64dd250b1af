"""The kernels of a staged student equal those of its exported file, and come fast."""

from functools import partial

import pytest
import staged_designs
import torch
from staged_designs import stage
from torch import nn

from kdcompile.export.onnx_file import onnx_from_module
from kdcompile.latency_model.kernels import kernels_of
from kdcompile.models.blocks import fold
from kdcompile.models.staged import StagedStudent
from kdcompile.search.spaces.staged_kernels import staged_kernels

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
SAME = (
    "kind", "input_precision", "weight_precision", "output_precision", "macs", "weight_bytes",
    "shape", "in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups",
)  # fmt: skip

architecture = partial(staged_designs.architecture, output_stride=4)

SAMPLE = {
    "conv and bottleneck": (
        architecture(stage(width=8, depth=2), stage("bottleneck", 40, 3, 4, "pool", 2)),
        (1, 3, 32, 48),
    ),
    "separable and repvgg": (
        architecture(
            stage("separable", 8), stage("separable", 16, 2, 2, "stride", 2),
            stage("repvgg", 16, 3, 2, "stride"),
        ),
        (1, 3, 32, 48),
    ),
    "mixed": (
        architecture(
            stage("repvgg", 8, 1, 2, "stride"), stage("separable", 24, 2, 2, "pool"),
            stage("bottleneck", 24, 2), stage("conv", 16, 1, dilation=2),
        ),
        (1, 3, 32, 48),
    ),
    "rounded up": (
        architecture(stage(stride=2), stage("repvgg", 24, 1, 2, "stride", 2)), (1, 3, 37, 41)
    ),
    "a batch of one channel": (
        architecture(stage("separable", 8, 1, 4, "stride"), in_channels=1), (3, 1, 32, 32)
    ),
    "three quarters, enlarged": (
        architecture(stage(stride=4), stage("bottleneck", 16, 2), input_scale=0.75, out_channels=2),
        (1, 3, 37, 48),
    ),
    "half": (
        architecture(stage("repvgg", 16, 1, 2, "stride"), input_scale=0.5), (1, 3, 37, 48)
    ),
    "pooled": (
        architecture(
            stage("separable", 24, 1, 4), head="pooled", out_channels=7, input_scale=0.5
        ),
        (4, 3, 32, 32),
    ),
}  # fmt: skip


def exported(settings, shape, path):
    torch.manual_seed(0)
    student = StagedStudent(settings).eval()
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):  # folded into a bias of zero it would be dropped
            nn.init.normal_(module.bias)
    return onnx_from_module(fold(student), path, (shape, shape, shape))


def essence(kernels):
    """Without names: each tensor by who wrote it, which is how kernels hang together."""
    writer = {name: number for number, kernel in enumerate(kernels) for name in kernel.writes}
    return [
        {
            **{name: getattr(kernel, name) for name in SAME},
            "reads": sorted((writer.get(name, -1), size) for name, size in kernel.reads.items()),
            "writes": list(kernel.writes.values()),
        }
        for kernel in kernels
    ]


@pytest.mark.parametrize("name", list(SAMPLE))
def test_the_kernels_are_those_of_the_exported_file(tmp_path, name):
    settings, shape = SAMPLE[name]
    model = exported(settings, shape, tmp_path / "student.onnx")
    for precision in PRECISIONS:
        expected = essence(kernels_of(model, shape, precision))
        assert essence(staged_kernels(settings, shape, precision)) == expected


def test_costs_by_hand():
    settings = architecture(stage("conv", 24, stride=2, down="stride"), output_stride=2)
    _, kernel, *_ = staged_kernels(settings, (1, 3, 10, 14), "int8")
    assert kernel.macs == 5 * 7 * 24 * 3 * 9
    assert kernel.reads == {"image.reformat": 3 * 10 * 14}
    assert kernel.writes == {"stages.0": 24 * 5 * 7}
    assert kernel.weight_bytes == 24 * 3 * 9 + 24 * 4


def test_equal_stages_are_the_same_kernels():
    first, second = (staged_kernels(*SAMPLE["mixed"]) for _ in range(2))
    assert all(one is other for one, other in zip(first, second, strict=True))
