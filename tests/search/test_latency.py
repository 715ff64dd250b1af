"""The latency estimate against every measured fixture, and the ways in which it must move."""

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from kdcompile import targets
from kdcompile.errors import KDError
from kdcompile.search import latency
from kdcompile.search.cost import Operation, macs, operations
from kdcompile.search.latency import estimate


class Block(nn.Module):
    """A residual block: convolutions (channels, kernel, stride), batch-norms, a shortcut."""

    def __init__(self, width: int, *convs: tuple[int, int, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        start, step = width, 1
        for out, kernel, stride in convs:
            layers += [nn.Conv2d(width, out, kernel, stride, kernel // 2, bias=False),
                       nn.BatchNorm2d(out), nn.ReLU(inplace=True)]  # fmt: skip
            width, step = out, step * stride
        self.body = nn.Sequential(*layers[:-1])
        self.short: nn.Module = nn.Identity()
        if start != width or step > 1:
            self.short = nn.Sequential(
                nn.Conv2d(start, width, 1, step, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu_(self.body(image) + self.short(image))


def stem() -> list[nn.Module]:
    return [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1)]  # fmt: skip


def resnet50() -> nn.Module:
    layers, width = stem(), 64
    for index, (blocks, mid) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            stride = 2 if index and not block else 1
            layers.append(Block(width, (mid, 1, 1), (mid, 3, stride), (mid * 4, 1, 1)))
            width = mid * 4
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def ssd_resnet34() -> nn.Module:
    """SSD-ResNet34's backbone (third stage at stride 1): 93 % of the network's multiply-adds."""
    layers, width = stem(), 64
    for blocks, out, first in ((3, 64, 1), (4, 128, 2), (6, 256, 1)):
        for block in range(blocks):
            layers.append(Block(width, (out, 3, 1 if block else first), (out, 3, 1)))
            width = out
    return nn.Sequential(*layers)


def csrnet(shrink: int) -> nn.Module:
    layers: list[nn.Module] = []
    width = 3
    for index, out in enumerate(
        (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, *[512] * 6, 256, 128, 64)
    ):
        if out:
            gap = 2 if index > 12 else 1
            layers += [nn.Conv2d(width, out // shrink, 3, padding=gap, dilation=gap), nn.ReLU()]
            width = out // shrink
        else:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.Conv2d(width, 1, 1))


NETS = {
    "ResNet-50": resnet50,
    "SSD-ResNet34": ssd_resnet34,
    "CSRNet": lambda: csrnet(1),
    "CSRNet-1/4": lambda: csrnet(4),
}
FIXTURES = [(name, f) for name in targets.names() for f in targets.load(name).fixtures]


@cache
def traced(model: str, shape: tuple[int, ...]) -> tuple[Operation, ...]:
    return tuple(operations(NETS[model](), shape))


@pytest.mark.parametrize(
    ("name", "fixture"),
    FIXTURES,
    ids=[f"{n}-{f.model}-{f.shape[0]}-{f.precision}" for n, f in FIXTURES],
)
def test_every_fixture_lies_in_the_validated_band(name: str, fixture: targets.Fixture) -> None:
    found = estimate(
        traced(fixture.model, fixture.shape),
        targets.load(f"{name}@{fixture.mode}"),
        fixture.precision,
    )
    assert found.validated
    assert found.low_ms < fixture.p50_ms < found.high_ms, found
    assert found.high_ms / found.low_ms == pytest.approx(latency.VALIDATED_BAND**2)


def test_the_fixtures_are_the_ones_that_were_published() -> None:
    times = {(n, f.model, f.shape[0], f.precision): f.p50_ms for n, f in FIXTURES}
    assert times["jetson-agx-orin-64gb", "ResNet-50", 1, "int8"] == 0.636
    assert times["jetson-orin-nx-16gb", "ResNet-50", 1, "int8"] == pytest.approx(1.085, abs=1e-3)
    assert times["jetson-xavier-nx", "ResNet-50", 1, "int8"] == 2.419
    assert len(times) == 13


@pytest.mark.parametrize(("name", "fixture"), FIXTURES)
def test_the_multiply_adds_of_a_fixture_are_those_of_its_network(
    name: str, fixture: targets.Fixture
) -> None:
    share = macs(traced(fixture.model, fixture.shape)) / 1e9 / fixture.gmac
    assert share == pytest.approx(0.93 if fixture.model == "SSD-ResNet34" else 1.0, abs=0.01)


def test_large_layers_run_nearer_to_the_peak() -> None:
    target = targets.load("jetson-xavier-nx")

    def efficiency(model: str, shape: tuple[int, ...]) -> float:
        ops = traced(model, shape)
        ideal = 2e-9 * macs(ops) / target.peak_tflops["int8"]
        return ideal / estimate(ops, target, "int8").ms

    small = efficiency("ResNet-50", (1, 3, 224, 224))
    large = efficiency("SSD-ResNet34", (1, 3, 1200, 1200))
    assert large > 2 * small
    assert large < latency.EFFICIENCY


def test_bounds_add_up_to_the_whole() -> None:
    found = estimate(traced("CSRNet-1/4", (1, 3, 576, 768)), targets.load("jetson"), "int8")
    assert sum(found.bounds.values()) == pytest.approx(found.ms)
    assert set(found.bounds) == {"arithmetic", "memory", "launch"}
    assert min(found.bounds.values()) > 0
    assert found.low_ms < found.ms < found.high_ms


def test_what_no_fixture_backs_is_unvalidated_and_wider() -> None:
    ops = traced("ResNet-50", (1, 3, 224, 224))
    agx = targets.load("jetson-agx-orin-64gb")
    other = [
        estimate(ops, targets.load("jetson"), "int8"),  # no fixture of this module
        estimate(ops, agx, "fp16"),  # none at this precision
        estimate(ops, targets.load("jetson-orin-nx-16gb@MAXN_SUPER"), "int8"),  # none in this mode
        estimate(operations(nn.Conv2d(3, 8, 3), (1, 3, 32, 32)), agx, "int8"),  # none of this size
    ]
    for found in other:
        assert not found.validated
        assert found.high_ms / found.low_ms == pytest.approx(latency.UNVALIDATED_BAND**2)


def test_a_slower_power_mode_and_a_wider_type_take_longer() -> None:
    ops = traced("CSRNet", (1, 3, 576, 768))
    fast, slow = targets.load("jetson"), targets.load("jetson@15W")
    times = [estimate(ops, fast, p).ms for p in ("int8", "fp16", "fp32")]
    assert times == sorted(times)
    assert estimate(ops, slow, "int8").ms > 1.4 * times[0]


def test_the_quarter_network_is_not_sixteen_times_faster() -> None:
    target = targets.load("jetson")
    shape = (1, 3, 576, 768)
    full, quarter = (
        estimate(traced(m, shape), target, "int8").ms for m in ("CSRNet", "CSRNet-1/4")
    )
    assert 3 < full / quarter < 12


def test_channels_off_the_tile_cost_as_much_as_the_next_tile() -> None:
    target = targets.load("jetson")

    def arithmetic(width: int) -> float:
        ops = operations(nn.Conv2d(256, width, 3, padding=1), (1, 256, 128, 128))
        return estimate(ops, target, "int8").bounds["arithmetic"]

    assert arithmetic(241) == pytest.approx(arithmetic(256))
    assert arithmetic(240) < arithmetic(241)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("cpu", "fp16"),
        ("jetson-xavier-nx", "bf16"),
        ("jetson-thor-t5000", "int8"),
        ("jetson", "fp8"),
    ],
)
def test_a_precision_without_a_peak_is_refused(name: str, precision: str) -> None:
    with pytest.raises(KDError) as caught:
        estimate(traced("ResNet-50", (1, 3, 224, 224)), targets.load(name), precision)
    assert caught.value.code == "target-precision"
    assert "fp32" in caught.value.fix
