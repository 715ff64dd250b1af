"""The measured latencies: their schema, and the gaps."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from kdcompile import targets
from kdcompile.core.errors import KDError
from kdcompile.targets import fixtures
from kdcompile.targets.fixtures import load_fixtures, parse_fixtures

TEXT = fixtures.FILE.read_text(encoding="utf-8")
KNOWN = {fixture.name: fixture for fixture in load_fixtures()}
LEAST = 10  # usable ones that a validation needs

ENTRY = """
[sources]
log = "a log"
[[fixtures]]
name = "one"
target = "jetson-xavier-nx"
mode = "20W"
clocks = "not recorded"
network = "Net"
shape = [2, 3, 8, 8]
precision = "int8"
gmac = 1
ms = { mean = 2, p90 = 3.0 }
software = "TensorRT"
conditions = "none"
source = "log"
kind = "published"
exact = false
structure = "unknown"
"""


def test_fixtures_is_no_target() -> None:
    assert fixtures.FILE.parent == targets.FOLDER
    assert "fixtures" not in targets.names()
    with pytest.raises(KDError) as caught:
        targets.load("fixtures")
    assert caught.value.code == "target-unknown"


def test_there_are_enough_from_several_networks_and_devices() -> None:
    usable = [f for f in KNOWN.values() if f.usable]
    on_gpu = [f for f in usable if targets.load(f.target).kind != "cpu"]
    assert len(on_gpu) >= LEAST
    assert {f.network for f in on_gpu} >= {
        "ResNet-50", "RetinaNet", "SSD-MobileNet-v1", "SSD-ResNet34", "CSRNet", "CSRNet-1/4",
    }  # fmt: skip
    assert len({f.target for f in on_gpu}) >= 4


def test_a_target_file_has_no_latencies_of_its_own() -> None:
    for name in targets.names():
        assert "fixture" not in (targets.FOLDER / f"{name}.toml").read_text().split("[facts]")[1]


def test_the_software_is_that_of_the_logs() -> None:
    assert "TensorRT 8.5.2" in KNOWN["orin-nx-16gb-resnet50-b1-int8"].software
    assert "JetPack 5.1.1" not in KNOWN["orin-nx-16gb-resnet50-b1-int8"].software
    assert KNOWN["xavier-nx-resnet50-b1-int8"].software == "JetPack 4.6, TensorRT 8.0.1"


@pytest.mark.parametrize(
    ("name", "statistic", "ms", "p90"),
    [
        ("agx-orin-64gb-retinanet-b1-int8", "p50", 11.560, 11.672),
        ("orin-nx-16gb-resnet50-b1-int8", "p50", 1.0846, 1.0878),
        ("orin-nx-16gb-retinanet-b1-int8", "p50", 34.04, 34.19),
        ("xavier-nx-resnet50-b1-int8", "p50", 2.419, 2.437),
        ("xavier-nx-ssd-mobilenet-v1-b1-int8", "mean", 1.349, 1.358),
        ("xavier-nx-ssd-resnet34-b1-int8", "mean", 41.95, 42.00),
    ],
)
def test_the_published_logs(name: str, statistic: str, ms: float, p90: float) -> None:
    fixture = KNOWN[name]
    assert (fixture.statistic, fixture.measured_ms, fixture.ms["p90"]) == (statistic, ms, p90)
    assert fixture.kind == "published"
    assert "mlperf_log_summary.txt" in fixture.source


def test_no_latency_beats_the_peak_of_its_device() -> None:
    seen = 0
    for fixture in KNOWN.values():
        if fixture.gmac and fixture.usable:
            peaks = targets.load(f"{fixture.target}@{fixture.mode}").peak_tflops
            peak = peaks[fixture.precision]
            if fixture.precision == "fp32":
                peak = peaks.get("tf32", peak)
            assert 0.01 < 2 * fixture.gmac / fixture.measured_ms / peak < 1
            seen += 1
    assert seen >= LEAST


def test_a_larger_network_or_batch_takes_longer_on_the_same_device() -> None:
    pairs = [
        (a, b) for a in KNOWN.values() for b in KNOWN.values()
        if (a.target, a.precision) == (b.target, b.precision)
        # depthwise layers and copies: few multiply-adds, slow
        and not any(slow in a.network + b.network for slow in ("MobileNet", "YOLO"))
        and a.usable and b.usable and a.gmac and b.gmac and 4 * a.gmac < b.gmac
    ]  # fmt: skip
    assert len(pairs) >= 6
    assert all(a.measured_ms < b.measured_ms for a, b in pairs)


def test_what_is_not_exact_or_not_used_says_why() -> None:
    for fixture in KNOWN.values():
        assert fixture.exact or "not known" in fixture.structure or not fixture.usable
        if fixture.mode not in targets.load(fixture.target).power_modes or -1 in fixture.shape:
            assert fixture.excluded
        assert fixture.batch == fixture.shape[0] >= 1
        assert fixture.kind != "secondary" or fixture.held_out or not fixture.usable


def test_no_source_is_written_and_never_used() -> None:
    head = TEXT.split("[[fixtures]]")[0].split("[sources]")[1]
    for key in re.findall(r"^([a-z0-9-]+) = ", head, re.MULTILINE):
        assert f'source = "{key}"' in TEXT, key


def test_fixtures_of_a_target() -> None:
    assert {f.network for f in fixtures.fixtures_of("h100")} == {"CSRNet", "CSRNet-1/4"}
    assert len(fixtures.fixtures_of("h100")) == 6
    assert fixtures.fixtures_of("jetson-agx-orin-32gb") == ()
    assert fixtures.fixtures_of("jetson@15W") == fixtures.fixtures_of("jetson-orin-nano-8gb") != ()
    with pytest.raises(KDError, match="no target"):
        fixtures.fixtures_of("h101")


def test_the_gaps_are_those_of_the_data() -> None:
    missing = fixtures.uncovered()
    assert set(missing) == set(targets.names())
    assert missing["jetson-orin-nano-4gb"] == targets.load("jetson-orin-nano-4gb").precisions
    assert missing["jetson-orin-nano-8gb"] == ("bf16",)
    assert "fp16" not in missing["h100"]
    said = "\n".join(fixtures.describe_gaps())
    assert "no Jetson has a fixture at bf16" in said
    assert "no Jetson has a fixture at fp16" not in said
    assert "jetson-orin-nano-4gb: no fixture that can be used" in said
    assert "known but not used: YOLO11n fp32 (secondary), " in said
    assert (
        "jetson-orin-nx-16gb: none at fp32, fp16, bf16, unvalidated there; has int8 in MAXN" in said
    )


def test_a_measurement_closes_its_gap() -> None:
    small = replace(
        KNOWN["orin-nx-16gb-resnet50-b1-int8"],
        target="jetson-orin-nano-4gb", mode="10W", precision="bf16",
    )  # fmt: skip
    more = [*KNOWN.values(), small]
    assert fixtures.uncovered(more)["jetson-orin-nano-4gb"] == ("fp32", "fp16", "int8")
    said = "\n".join(fixtures.describe_gaps(more))
    assert "no Jetson has a fixture at bf16" not in said
    assert (
        "jetson-orin-nano-4gb: none at fp32, fp16, int8, unvalidated there; has bf16 in 10W" in said
    )
    unused = [*KNOWN.values(), replace(small, excluded="a trial")]
    assert "no Jetson has a fixture at bf16" in "\n".join(fixtures.describe_gaps(unused))
    assert all(missing for missing in fixtures.uncovered([]).values())


def test_an_entry_is_read_as_it_stands() -> None:
    (one,) = parse_fixtures(ENTRY)
    assert (one.batch, one.measured_ms, one.statistic) == (2, 2, "mean")
    assert (one.source, one.gmac, one.excluded, one.exact) == ("a log", 1, "", False)


def swap(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert text.count(old) == 1
        return text.replace(old, new)

    return change


BREAKS = {
    "an unknown key": (swap("gmac =", "gmacs ="), "did you mean 'gmac'"),
    "a missing key": (swap('clocks = "not recorded"\n', ""), "'clocks' is missing"),
    "an unknown target": (swap("jetson-xavier-nx", "jetson-xavier-n"), "'jetson-xavier-nx'"),
    "an alias as target": (swap("jetson-xavier-nx", "jetson"), "target 'jetson'"),
    "an unknown precision": (swap("int8", "int4"), "precision 'int4'"),
    "a precision of another target": (swap("int8", "bf16"), "precision 'bf16'"),
    "an unknown mode": (swap("20W", "30W"), "mode '30W'"),
    "an unknown kind": (swap('"published"', '"guessed"'), "kind 'guessed'"),
    "an unknown source": (swap('source = "log"', 'source = "lag"'), "did you mean 'log'"),
    "a secondary figure that is used": (swap('"published"', '"secondary"'), "secondary"),
    "a statistic unheard of": (swap("p90 =", "p42 ="), "ms 'p42'"),
    "only a tail": (swap("mean = 2, ", ""), "no typical latency"),
    "no time": (swap("mean = 2", "mean = 0"), "not all milliseconds"),
    "a time in words": (swap("mean = 2", 'mean = "2"'), "not all milliseconds"),
    "infinite time": (swap("p90 = 3.0", "p90 = inf"), "not all milliseconds"),
    "quantiles that fall": (swap("p90 = 3.0", "p90 = 3.0, p50 = 3.1"), "do not ascend"),
    "a free size": (swap("[2, 3", "[-1, 3"), "shape"),
    "a size of nothing": (swap("[2, 3", "[0, 3"), "shape"),
    "no shape": (swap("[2, 3, 8, 8]", "[]"), "shape"),
    "a flag in words": (swap("exact = false", 'exact = "no"'), "exact = 'no'"),
    "an empty text": (swap('"none"', '""'), "conditions = ''"),
    "work below nothing": (swap("gmac = 1", "gmac = -1"), "gmac = -1"),
    "a name twice": (lambda text: text + text[text.index("[[fix") :], "twice"),
}


@pytest.mark.parametrize(("change", "says"), BREAKS.values(), ids=BREAKS)
def test_the_schema_is_closed(change: Callable[[str], str], says: str) -> None:
    with pytest.raises(KDError) as caught:
        parse_fixtures(change(ENTRY))
    assert caught.value.code == "fixtures-invalid"
    assert says in caught.value.message
    assert caught.value.message.startswith("one: ")
    assert caught.value.where.endswith("fixtures.toml, one")
    assert caught.value.fix


@pytest.mark.parametrize("text", ["[[", "", "[sources]", "sources = 1\nfixtures = []",
                                  "fixtures = [1]\n[sources]",
                                  "fixtures = []\n[sources]\nlog = 1"])  # fmt: skip
def test_a_file_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(KDError) as caught:
        parse_fixtures(text)
    assert caught.value.code == "fixtures-invalid"
    assert caught.value.fix


def test_a_record_may_lack_what_a_fixture_needs() -> None:
    why = 'excluded = "a trial"\n'
    for change in (swap("20W", "MaxQ"), swap("[2, 3", "[-1, 3"), swap("published", "secondary")):
        (one,) = parse_fixtures(change(ENTRY) + why)
        assert not one.usable
    with pytest.raises(KDError):
        parse_fixtures(ENTRY + 'excluded = ""\n')


def test_how_mlperf_hands_its_images_over() -> None:
    """`input_format` and `use_direct_host_access` of the submitter's configurations."""
    mlperf = {n: f for n, f in KNOWN.items() if f.source.startswith("MLPerf") and f.usable}
    assert {n for n, f in mlperf.items() if f.image == "chw4"} == {
        n for n in mlperf if "ssd-mobilenet" in n
    }
    assert all(f.image == "linear" for f in mlperf.values() if "ssd-mobilenet" not in f.name)
    assert all(f.image == "float" for n, f in KNOWN.items() if n not in mlperf)
    copied = {n: f.copied for n, f in mlperf.items() if f.copied}
    assert copied == {
        "xavier-nx-resnet50-b1-int8": 3 * 224 * 224,
        "xavier-nx-ssd-mobilenet-v1-b1-int8": 4 * 300 * 300,
        "agx-xavier-resnet50-b1-int8": 3 * 224 * 224,
        "agx-xavier-ssd-mobilenet-v1-b1-int8": 4 * 300 * 300,
        "agx-xavier-ssd-resnet34-b1-int8": 3 * 1200 * 1200,
    }
