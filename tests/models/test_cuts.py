"""The stages of teachers: chains, residual blocks, functional activations, and none."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from kdcompile.core.errors import KDError
from kdcompile.examples.digits.model import DigitCounter
from kdcompile.models.csrnet import CSRNet
from kdcompile.models.cuts import Cut, cuts


class Residual(nn.Module):
    """One ReLU module for two activations, as ResNet writes it."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        made = self.second(self.relu(self.norm(self.first(x))))
        return self.relu(made + self.skip(x))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 7, 2, 3)
        self.layer1 = nn.Sequential(Residual(16, 16, 1), Residual(16, 16, 1))
        self.layer2 = nn.Sequential(Residual(16, 32, 2))
        self.linear = nn.Linear(32, 10)

    def forward(self, x):
        x = functional.max_pool2d(functional.relu(self.stem(x)), 2)
        return self.linear(self.layer2(self.layer1(x)).mean((2, 3)))


class Skipping(nn.Module):
    """A decoder that reads the first stage too."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())

    def forward(self, x):
        full = self.first(x)
        small = self.second(full)
        return full + functional.interpolate(small, scale_factor=2.0)


class Silent(nn.Module):
    def forward(self, x):
        raise NotImplementedError


class Valued(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def conv(inputs, outputs, kernel=3, stride=1, dilation=1):
    padding = dilation * (kernel // 2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation), nn.ReLU())


def test_csrnet_has_five_stages():
    assert cuts(CSRNet().eval(), (1, 3, 576, 768)) == [
        Cut("frontend.3", 1, 64, 2, 1),
        Cut("frontend.8", 2, 128, 2, 1),
        Cut("frontend.15", 4, 256, 3, 1),
        Cut("frontend", 8, 512, 3, 1),
        Cut("backend", 8, 64, 6, 2),
    ]


def test_the_digit_counter_has_three_stages():
    assert cuts(DigitCounter().eval(), (1, 1, 96, 128)) == [
        Cut("features.3", 2, 64, 2, 1),
        Cut("features.8", 4, 96, 2, 1),
        Cut("features", 4, 96, 2, 2),
    ]


def test_a_residual_network_is_cut_between_its_layers():
    assert cuts(Classifier().eval(), (1, 3, 64, 64)) == [
        Cut("layer1", 4, 16, 5, 1),  # the stem's activation is no module's output
        Cut("layer2", 8, 32, 2, 1),
    ]


def test_each_cut_is_where_the_output_hangs_on():
    torch.manual_seed(0)
    teacher, image = Classifier().eval(), torch.randn(1, 3, 64, 64)
    for cut in cuts(teacher, (1, 3, 64, 64)):
        module = teacher.get_submodule(cut.name)
        kept = []
        hook = module.register_forward_hook(lambda _m, _i, y, kept=kept: kept.append(y))
        with torch.no_grad():
            expected = teacher(image)
        hook.remove()
        assert kept[0].shape == (1, cut.channels, 64 // cut.stride, 64 // cut.stride)
        hook = module.register_forward_hook(lambda _m, _i, _y, kept=kept: kept[0])
        with torch.no_grad():
            assert torch.equal(teacher(torch.randn(1, 3, 64, 64)), expected)
        hook.remove()


def test_a_1x1_convolution_does_not_end_a_dilated_stage():
    teacher = nn.Sequential(
        conv(3, 8), conv(8, 8, dilation=2), conv(8, 16, kernel=1), conv(16, 8, dilation=2)
    )
    assert cuts(teacher.eval(), (1, 3, 32, 32)) == [Cut("0", 1, 8, 1, 1), Cut("3", 1, 8, 3, 2)]


@pytest.mark.parametrize("side", [64, 100, 33])
def test_strides_do_not_depend_on_how_sizes_are_rounded(side):
    teacher = nn.Sequential(*(conv(3 if i == 0 else 8, 8, stride=2) for i in range(5)))
    assert [cut.stride for cut in cuts(teacher.eval(), (1, 3, side, side))] == [2, 4, 8, 16, 32]


def test_cuts_end_where_the_image_grows():
    teacher = nn.Sequential(
        conv(3, 8), conv(8, 16, stride=2), nn.Upsample(scale_factor=2), conv(16, 4)
    )
    assert [cut.name for cut in cuts(teacher.eval(), (1, 3, 32, 32))] == ["0", "1"]


def test_nothing_of_the_teacher_changes():
    teacher = Classifier().eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    cuts(teacher, (1, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(module._forward_hooks for module in teacher.modules())
    assert teacher(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize(
    "teacher",
    [
        Skipping(),
        Valued(),
        Silent(),
        nn.Sequential(conv(3, 8), conv(8, 8)),
        nn.Conv2d(3, 1, 1),
    ],
)
def test_other_teachers_have_no_stages(teacher):
    with pytest.raises(KDError) as error:
        cuts(teacher.eval(), (1, 3, 32, 32))
    assert error.value.code == "stages-unknown"
    assert 'student.family = "shrink"' in error.value.fix
