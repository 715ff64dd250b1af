"""The hardware rules: what each target refuses or does in vain, and that the data is closed."""

import dataclasses
import json

import pytest
from click.testing import CliRunner

from kdcompile import targets
from kdcompile.backends.tensorrt_ import TensorRT
from kdcompile.cli import cli
from kdcompile.core.errors import KDError
from kdcompile.remote.agent.tensorrt_network import NEEDS_CAPABILITY
from kdcompile.targets import rules_file
from kdcompile.targets.limits import Operator, dla_refusals, padded_macs, tile
from kdcompile.targets.rules import Asked, Network, Violation, violations
from kdcompile.targets.rules_file import parse, tables
from kdcompile.targets.schema import version

TEXT = rules_file.FILE.read_text(encoding="utf-8")
RULES = {rule.code: rule for rule in tables().rules}


def met(name: str, **asked: object) -> list[str]:
    return [v.code for v in violations(targets.load(name), Asked(**asked))]  # type: ignore[arg-type]


def conv(name: str = "c", **changed: object) -> Operator:
    plain = Operator(
        name, "Conv", (1, 32, 48, 48), kernel=(3, 3), stride=(1, 1), dilation=(1, 1),
        padding=(1, 1), in_channels=32, out_channels=32, macs=32 * 32 * 9 * 48 * 48,
    )  # fmt: skip
    return dataclasses.replace(plain, **changed)  # type: ignore[arg-type]


def of_network(
    name: str, *operators: Operator, at: str = "fp16", **asked: object
) -> list[Violation]:
    network = Network(operators, at, 17, 8)
    return violations(targets.load(name), Asked(**asked), network)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "asked", "codes"),
    [
        ("jetson", {"precision": "fp8"}, ["fp8-arithmetic"]),
        ("jetson-thor-t5000", {"precision": "fp8"}, []),
        ("jetson-xavier-nx", {"precision": "bf16"}, ["bf16-arithmetic", "bf16-tensorrt"]),
        ("jetson-agx-orin-64gb@jp5.1.2", {"precision": "bf16"}, ["bf16-tensorrt"]),
        ("jetson-agx-orin-64gb", {"precision": "bf16"}, []),
        ("jetson-thor-t5000", {"precision": "int8"}, ["precision-known"]),
        ("jetson-thor-t5000", {"precision": "mixed"}, ["precision-known"]),
        ("cpu", {"precision": "fp16"}, ["precision-known"]),
        ("cpu", {"precision": "bf16"}, ["bf16-tensorrt"]),
        ("t4", {"precision": "int8"}, []),
        ("t4", {"tf32": False}, ["tf32-arithmetic"]),
        ("jetson-xavier-nx", {"tf32": False, "precision": "fp32"}, ["tf32-arithmetic"]),
        ("cpu", {"tf32": False}, ["tf32-arithmetic"]),
        ("jetson", {"tf32": False}, []),
        ("h100", {"tf32": False}, []),
        ("jetson", {"dla": 0}, ["dla-cores"]),
        ("jetson-orin-nx-8gb", {"dla": 1}, ["dla-cores"]),
        ("jetson-orin-nx-8gb", {"dla": 0, "precision": "fp16"}, []),
        ("jetson-orin-nx-8gb", {"dla": 0}, ["dla-explicit-int8"]),
        ("jetson-orin-nx-8gb", {"dla": 0, "precision": "mixed"}, ["dla-explicit-int8"]),
        ("jetson-orin-nx-8gb", {"dla": 0, "precision": "fp32"}, ["dla-precision"]),
        (
            "jetson-orin-nx-8gb", {"dla": 0, "precision": "fp16", "is_dynamic": True},
            ["dla-fixed-shape"],
        ),
        ("jetson-agx-orin-64gb@jp7.2.2", {"dla": 0, "precision": "fp16"}, []),
        ("jetson-agx-orin-64gb@jp5.1.2", {"optimization_level": 0}, ["optimization-level"]),
        ("jetson-agx-orin-64gb@jp6.0", {"optimization_level": 0}, []),
        ("h100", {"precision": "fp8"}, []),  # of its range of TensorRTs one may do
    ],
)  # fmt: skip
def test_what_a_target_refuses(name: str, asked: dict[str, object], codes: list[str]) -> None:
    assert met(name, **asked) == codes


def test_every_violation_says_where_and_what_to_do() -> None:
    seen = set()
    for name in targets.names():
        target = targets.load(name)
        for precision in ("auto", *rules_file.PRECISIONS):
            asked = Asked(precision, dla=1, tf32=False, optimization_level=3, is_dynamic=True)
            for found in violations(target, asked):
                assert found.message.startswith(RULES[found.code].text + "; ")
                assert found.where.startswith(("[quantize] precision = ", "[compile] ", "[export]"))
                assert found.effect == RULES[found.code].effect
                assert found.fix.split()[0] in ("set", "choose", "leave", "give")
                assert len(found.source) > 20
                seen.add(found.code)
    # no target is below 7.2, and none with a DLA has a TensorRT between 10.8 and 11.4.0
    assert {r for r in RULES if not RULES[r].operators} - seen == {
        "int8-arithmetic",
        "dla-tensorrt",
    }


def test_rules_of_devices_that_no_target_is() -> None:
    nano = dataclasses.replace(targets.load("jetson"), compute_capability="5.3")
    assert violations(nano, Asked("mixed"))[0].code == "int8-arithmetic"
    pascal = dataclasses.replace(nano, compute_capability="6.1")
    assert violations(pascal, Asked("int8")) == []
    newer = dataclasses.replace(targets.load("jetson-agx-orin-64gb"), tensorrt="10.13.3")
    assert [v.code for v in violations(newer, Asked("fp16", dla=0))] == ["dla-tensorrt"]


def test_a_workstation_is_judged_by_the_tensorrt_that_is_found() -> None:
    found = targets.load("h100").with_backend("8.6.1")
    assert [v.code for v in violations(found, Asked("fp8"))] == ["fp8-tensorrt"]


def test_no_target_file_promises_what_a_rule_of_the_hardware_refuses() -> None:
    for name in targets.names():
        target = targets.load(name)
        for precision in target.precisions:
            codes = {v.code for v in violations(target, Asked(precision))}
            assert not codes & {
                "int8-arithmetic",
                "bf16-arithmetic",
                "fp8-arithmetic",
                "precision-known",
            }


def test_the_rules_are_those_that_the_board_goes_by() -> None:
    for precision, least in NEEDS_CAPABILITY.items():
        assert version(RULES[f"{precision}-arithmetic"].needs["capability"]) == least
    capabilities = TensorRT().capabilities(targets.load("jetson"))
    assert set(RULES["dla-precision"].needs["dla_precisions"]) == set(capabilities.dla_precisions)


def test_the_limits_of_a_target() -> None:
    assert [r.code for r in targets.load("jetson").rules] == ["fp8-arithmetic", "dla-cores"]
    assert [r.code for r in targets.load("h100").rules] == ["dla-cores"]


def test_targets_show_prints_limits_and_latencies() -> None:
    show = ["targets", "show", "jetson-orin-nx-16gb@MAXN"]
    shown = CliRunner().invoke(cli, show).output
    assert "limit                fp8-arithmetic: fp8 arithmetic begins with" in shown
    assert "fixture              ResNet-50 int8 MAXN 1.0846 ms   [MLPerf" in shown
    assert "not used: " in shown
    told = json.loads(CliRunner().invoke(cli, [*show, "--json"]).output)
    assert [rule["code"] for rule in told["rules"]] == ["fp8-arithmetic", "dla-explicit-int8"]
    assert {fixture["network"] for fixture in told["fixtures"]} == {
        "ResNet-50", "RetinaNet", "YOLO11n", "YOLO11s", "YOLO11m",
    }  # fmt: skip
    assert "YOLO11n fp16 MAXN 4.85 ms, secondary   [ultralytics" in shown
    assert "validated.int8       convolutional, detector" in shown
    assert "validated.fp16       no kind of network" in shown


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"dilation": (2, 2)}, None),
        ({"kernel": (33, 3)}, "Conv kernel: 1 to 32"),
        ({"stride": (9, 9)}, "Conv stride: 1 to 8"),
        ({"dilation": (33, 1)}, "Conv dilation: 1 to 32"),
        ({"padding": (0, 32)}, "Conv padding: 0 to 31"),
        ({"out_channels": 8193}, "Conv channels: 1 to 8192"),
        ({"kernel": (3,)}, "Conv: 2 image axes"),
        ({"shape": (1, 32, 9000, 48)}, "size: 1 to 8192"),
        ({"type": "ConvTranspose"}, "ConvTranspose padding: 0"),
        ({"type": "ConvTranspose", "padding": (0, 0)}, None),
        ({"type": "ConvTranspose", "padding": (0, 0), "groups": 2}, "ConvTranspose groups: 1"),
        ({"type": "MatMul", "weight": False}, "MatMul: one side must be a constant"),
        ({"type": "Resize", "kernel": (), "factor": (1.5, 1.5)}, "Resize factor: whole numbers"),
        ({"type": "Resize", "kernel": (), "factor": (2.0, 2.0)}, None),
        ({"type": "MaxPool", "padding": (0, 0)}, None),
        ({"type": "MaxPool", "kernel": (9, 9)}, "MaxPool kernel: 1 to 8"),
        ({"type": "GlobalAveragePool"}, "a DLA has no GlobalAveragePool"),
        ({"type": "Gelu"}, "a DLA has no Gelu"),
    ],
)  # fmt: skip
def test_what_a_dla_takes(changed: dict[str, object], reason: str | None) -> None:
    found = dla_refusals([conv(**changed)], targets.load("jetson-agx-orin-64gb"))
    assert list(found) == ([] if reason is None else [reason])


def test_a_dla_of_xavier_has_fewer_operators() -> None:
    softmax = Operator("s", "Softmax", (1, 10, 1, 1))
    assert dla_refusals([softmax], targets.load("jetson-agx-orin-64gb")) == {}
    (reason,) = dla_refusals([softmax], targets.load("jetson-agx-xavier"))
    assert "8.7" in reason


def test_operators_that_fall_back_are_counted_and_named() -> None:
    gelus = [Operator(f"g{n}", "Gelu", (1, 32, 48, 48)) for n in range(5)]
    (found,) = of_network("jetson-agx-orin-64gb", conv(), *gelus, dla=0, precision="fp16")
    assert found.code == "dla-operator"
    assert found.message == "a DLA has no Gelu; 5 of 6 operators stay on the GPU"
    assert found.where == "g0, g1, g2 and 2 more"
    assert of_network("jetson-agx-orin-64gb", conv(), *gelus, precision="fp16") == []


def test_the_tile_of_a_precision() -> None:
    orin, cpu = targets.load("jetson"), targets.load("cpu")
    assert [tile(orin, p) for p in ("int8", "fp16", "fp32")] == [16, 8, 4]
    assert [tile(cpu, p) for p in ("int8", "fp32")] == [8, 8]


def test_padding_counts_by_group_and_leaves_depthwise_alone() -> None:
    assert padded_macs(conv(), 16) == conv().macs
    assert padded_macs(conv(in_channels=24, macs=240), 16) == 320
    assert padded_macs(conv(groups=4, macs=64), 16) == 64 * 4  # 8 channels each, both sides
    assert padded_macs(conv(groups=32, macs=64), 16) == 64
    assert padded_macs(conv(in_channels=3, out_channels=24, macs=72), 16) == 3 * 32
    assert padded_macs(conv(out_channels=1, macs=32), 16) == 32
    assert padded_macs(Operator("r", "Relu", (1, 3, 8, 8)), 16) == 0


def test_widths_off_the_tile_are_named_with_their_share() -> None:
    odd = conv("odd", in_channels=20, out_channels=20, macs=400)
    even = conv("even", macs=1024)
    (found,) = of_network("jetson", even, odd, at="int8")
    assert found.code == "channel-tile"
    assert found.where == "odd"
    assert "16 at int8: 30% of it is padding (most: odd 20 to 20)" in found.message  # 624 of 2048
    (at_half,) = of_network("jetson", even, odd, at="fp16")  # 24 x 24 for 20 x 20
    assert "8 at fp16: 11%" in at_half.message
    assert of_network("jetson", even, conv("small", in_channels=20, macs=20), at="fp16") == []


def test_a_network_of_a_newer_opset_is_refused() -> None:
    target = targets.load("jetson-agx-orin-64gb@jp5.1.2")
    (found,) = violations(target, Asked(), Network([], "fp16", 18, 9))
    assert (found.code, found.effect) == ("onnx-opset", "refused")
    assert "opset 18 and IR 9" in found.message
    assert violations(target, Asked(), Network([], "fp16", 16, 8)) == []
    assert violations(target, Asked(), Network([], "fp16", 17, 8))  # it has layer norms


def test_an_operator_survives_json() -> None:
    once = conv(factor=(2.0, 2.0))
    assert Operator.from_json(json.loads(json.dumps(dataclasses.asdict(once)))) == once


def test_no_source_is_written_and_never_used() -> None:
    import tomllib

    for key in tomllib.loads(TEXT)["sources"]:
        assert f'source = "{key}"' in TEXT, key


@pytest.mark.parametrize(("old", "new"), [
    ('effect = "wasted"', 'effect = "slow"'),
    ('option = "dla"', 'option = "dal"'),
    ('capability = "7.2"', 'capabilty = "7.2"'),
    ('precisions = ["bf16"]', 'precisions = ["bf61"]'),
    ('code = "dla-cores"', 'code = "dla-tensorrt"'),
    ('source = "level"', 'source = "nowhere"'),
    ('kernel = [1, 32]', 'kernel = [32, 1]'),
    ('axes = 2', 'axis = 2'),
    ('[tiles]', '[tile]'),
    ('opset = 17', 'opsets = 17'),
    ('text = "bf16', 'txt = "bf16'),
    ('[sources]', '[sources'),
])  # fmt: skip
def test_the_schema_is_closed(old: str, new: str) -> None:
    assert old in TEXT
    with pytest.raises(KDError) as caught:
        parse(TEXT.replace(old, new, 1))
    assert caught.value.code == "target-invalid"
    assert caught.value.where == "targets/rules.toml"
