"""Counting what a network computes, against published counts and hand-made arithmetic."""

import pytest
import torch
from torch import Tensor, nn

from kdcompile.core.errors import KDError
from kdcompile.latency_model.module_cost import Operation, macs, operations, params


def csrnet(shrink: int) -> nn.Module:
    """CSRNet's layers at 1/shrink of their channels."""
    layers: list[nn.Module] = []
    width = 3
    front = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512)
    back = (512, 512, 512, 256, 128, 64)
    for out, dilation in [*((c, 1) for c in front), *((c, 2) for c in back)]:
        if not out:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            continue
        layers.append(nn.Conv2d(width, out // shrink, 3, padding=dilation, dilation=dilation))
        layers.append(nn.ReLU(inplace=True))
        width = out // shrink
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 1))


class Residual(nn.Module):
    """Two convolutions and an addition of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.second(torch.relu_(self.norm(self.first(image)))) + image)


@pytest.mark.parametrize(
    ("shrink", "count", "gmac"), [(1, 16_263_489, 205.53), (4, 1_017_681, 13.01)]
)
def test_csrnet_matches_its_published_counts(shrink: int, count: int, gmac: float) -> None:
    net = csrnet(shrink)
    assert params(net) == count
    ops = operations(net, (1, 3, 576, 864))
    assert round(macs(ops) / 1e9, 2) == gmac
    assert [op.kind for op in ops if not op.fused].count("conv") == 17
    assert sum(op.kind == "pool" for op in ops) == 3


def test_elements_of_a_convolution() -> None:
    (op,) = operations(nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2), (2, 6, 8, 8))
    assert op == Operation("conv", 2 * 4 * 16 * 27, 2 * 6 * 64, 2 * 4 * 16, 4 * 27, 4, 6, 2, False)


def test_transposed_convolution_counts_each_input() -> None:
    (op,) = operations(nn.ConvTranspose2d(3, 5, 2, stride=2, bias=False), (1, 3, 4, 4))
    assert op.macs == 3 * 16 * 5 * 4
    assert (op.in_channels, op.out_channels, op.out_elements) == (3, 5, 5 * 64)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 16), (2, 7, 16)])
def test_linear_is_a_matrix_product(bias: bool, shape: tuple[int, ...]) -> None:
    ops = operations(nn.Sequential(nn.Linear(16, 10, bias=bias), nn.ReLU()), shape)
    rows = torch.Size(shape[:-1]).numel()
    assert ops[0] == Operation("gemm", rows * 160, rows * 16, rows * 10, 160, 10, 16, 1, False)
    assert all(op.fused for op in ops[1:])


def test_an_addition_reads_its_second_operand_and_nothing_else() -> None:
    ops = operations(Residual(), (1, 8, 10, 10))
    assert [op.kind for op in ops if not op.fused] == ["conv", "conv"]
    fused = [op for op in ops if op.fused]
    assert [op.in_elements for op in fused] == [0, 0, 800, 0]
    assert not any(op.macs or op.out_elements for op in fused)


def test_pointwise_ops_alone_and_views() -> None:
    class Odd(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.relu(image).reshape(1, -1).unsqueeze(0).transpose(1, 2)

    (op,) = operations(Odd(), (1, 3, 4, 4))
    assert (op.kind, op.fused, op.in_elements, op.out_elements) == ("elementwise", False, 48, 48)


def test_a_batch_norm_is_folded_and_an_instance_norm_is_not() -> None:
    conv = nn.Conv2d(3, 8, 1)
    norm = operations(nn.Sequential(conv, nn.BatchNorm2d(8)), (1, 3, 4, 4))[1]
    assert norm.fused
    norm = operations(nn.Sequential(conv, nn.InstanceNorm2d(8)), (1, 3, 4, 4))[1]
    assert not norm.fused
    assert norm.out_elements == 128


def test_the_module_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    operations(net, (1, 3, 4, 4))
    assert net.training
    for key, value in net.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[key])


def test_a_shape_that_does_not_fit_is_refused() -> None:
    with pytest.raises(KDError) as caught:
        operations(nn.Conv2d(3, 4, 3), (1, 5, 8, 8))
    assert caught.value.code == "cost-shape"


def test_a_forward_that_reads_values_is_refused() -> None:
    class Reads(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image * 2 if image.sum().item() > 0 else image

    with pytest.raises(KDError) as caught:
        operations(Reads(), (1, 3, 4, 4))
    assert caught.value.code == "cost-shape"
