"""Norms of one axis that are subclasses of torch's are solved along the axis that they are over."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from kdcompile.distill.inherit import inherit
from kdcompile.distill.inherit.layer_norm import norm_axis
from kdcompile.models.shrunk import student_from_architecture
from kdcompile.search.spaces.pruned import architectures


class Same(nn.LayerNorm):
    """What the class that it is derived from computes, in code of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Planar(nn.LayerNorm):
    """Over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Activated(nn.LayerNorm):
    """More than a norm."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Blocks(nn.Module):
    """Images through a stem with a norm, a block of a depthwise convolution and a gated sum."""

    def __init__(self, norm: type[nn.LayerNorm]) -> None:
        super().__init__()
        self.is_planar = norm is Planar
        self.stem, self.norm = nn.Conv2d(3, 16, 2, 2), norm(16)
        self.deep, self.inner = nn.Conv2d(16, 16, 3, padding=1, groups=16), norm(16)
        self.wide, self.back = nn.Conv2d(16, 32, 1), nn.Conv2d(32, 16, 1)
        self.head = nn.Linear(16, 4)

    def _normed(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        return norm(x) if self.is_planar else norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, image: Tensor) -> Tensor:
        x = self._normed(self.norm, self.stem(image))
        x = x + self.back(self.wide(self._normed(self.inner, self.deep(x))).relu())
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def crops(seed: int = 0) -> list[Tensor]:
    """Images as wide as the norms, so that no axis is known by its length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 32, 32, generator=generator) for _ in range(4)]


@pytest.mark.parametrize(
    ("norm", "axis"), [(nn.LayerNorm, -1), (Same, -1), (Planar, 1), (Activated, None)]
)
def test_the_axis_of_a_norm(norm: type[nn.LayerNorm], axis: int | None) -> None:
    assert norm_axis(norm(5)) == axis


def inherited(norm: type[nn.LayerNorm], ratio: float) -> tuple[dict, float]:
    torch.manual_seed(0)
    teacher = Blocks(norm).eval()
    with torch.no_grad():
        for name in ("norm", "inner"):
            teacher.get_submodule(name).weight.uniform_(0.5, 2)
            teacher.get_submodule(name).bias.normal_()
    architecture = architectures(teacher, (1, 3, 32, 32), 1, 0, [ratio])[0]
    student = student_from_architecture(teacher, architecture, Path())
    report = inherit(teacher, student, architecture, crops())
    x = torch.cat(crops(9))
    with torch.inference_mode():
        wanted = teacher(x)
        wrong = (student.eval()(x) - wanted).norm() / (wanted - wanted.mean(0)).norm()
    return report, float(wrong)


def test_subclasses_are_inherited_as_torch_s_own() -> None:
    plain, _ = inherited(nn.LayerNorm, 0.5)
    for norm in (Same, Planar):
        found, _ = inherited(norm, 0.5)
        assert found["sliced"] == []
        assert inherited(norm, 1.0)[1] < 1e-5
        for mine, theirs in zip(found["layers"], plain["layers"], strict=True):
            assert mine["relative_error"] == pytest.approx(theirs["relative_error"], rel=0.3)


def test_what_does_more_is_sliced_and_reported() -> None:
    report, _ = inherited(Activated, 0.5)
    why = "a Activated may do more than its weights say"
    assert report["sliced"] == [{"name": name, "why": why} for name in ("norm", "inner")]
