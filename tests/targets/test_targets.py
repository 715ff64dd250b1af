"""The target files: complete sources, dense peaks, names, power modes, JetPacks, backends."""

import copy
import json
import subprocess
import sys
import tomllib

import pytest

from kdcompile import targets
from kdcompile.core.errors import KDError
from kdcompile.targets import schema

EXPECTED = {
    "cpu", "h100", "intel-cpu", "jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-agx-xavier",
    "jetson-orin-nano-4gb", "jetson-orin-nano-8gb", "jetson-orin-nx-16gb", "jetson-orin-nx-8gb",
    "jetson-thor-t4000", "jetson-thor-t5000", "jetson-xavier-nx", "l4", "rtx-4080", "rtx-4090",
    "t4",
}  # fmt: skip

# NVIDIA's advertised int8 TOPS: with 2:4 sparsity where the generation has it
HEADLINE_TOPS = {
    "jetson-orin-nano-4gb": 34, "jetson-orin-nano-8gb": 67, "jetson-orin-nx-8gb": 117,
    "jetson-orin-nx-16gb": 157, "jetson-agx-orin-32gb": 200, "jetson-agx-orin-64gb": 275,
    "l4": 485, "rtx-4080": 780, "rtx-4090": 1321, "h100": 3958,
}  # fmt: skip

# dense operations per clock and SM: fp32, fp16, int8
RATES = {"7.2": (128, 1024, 2048), "7.5": (128, 1024, 2048), "8.7": (256, 2048, 4096)}


def table(name: str) -> dict:
    return tomllib.loads((targets.FOLDER / f"{name}.toml").read_text())


def everything() -> list[targets.Target]:
    """Each module in each power mode."""
    return [
        targets.load(f"{name}@{mode}") for name in targets.names() for mode in table(name)["modes"]
    ]


def test_all_the_devices_are_there() -> None:
    assert set(targets.names()) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_value_has_a_known_kind_and_a_written_source(name: str) -> None:
    target = targets.load(name)
    said = {"jetpack", "jetpacks", "backend", "max_opset", "ir_version", "sources", "tf32"}
    said |= {"name", "title", "kind", "power_mode", "power_modes", "runtime"}  # what it is about
    said |= {"dla"} if target.kind == "cpu" else set()
    for key, value in target.to_json().items():
        if key in said or value is None:
            continue
        parts = [f"{key}.{p}" for p in value] if isinstance(value, dict) else [key]
        if key == "tensorrt" and target.kind == "workstation":
            parts = ["tensorrt_min", "tensorrt_max"]
        for part in parts:
            kind, text = target.sources[part].split(": ", 1)
            assert kind in schema.PROVENANCE
            assert len(text) > 20, part


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_no_source_is_written_and_never_used(name: str) -> None:
    text = (targets.FOLDER / f"{name}.toml").read_text()
    for key in table(name)["sources"]:
        assert f'source = "{key}"' in text, key


@pytest.mark.parametrize(("name", "headline"), HEADLINE_TOPS.items())
def test_peaks_are_dense_not_the_sparse_headline(name: str, headline: float) -> None:
    assert targets.load(name).peak_tflops["int8"] <= 0.51 * headline


def test_dense_peaks_follow_from_the_clock() -> None:
    seen = 0
    for target in everything():
        if target.compute_capability in RATES:
            assert target.gpu_mhz is not None
            fp32, fp16, int8 = (target.sm_count * target.gpu_mhz * r / 1e6
                                for r in RATES[target.compute_capability])  # fmt: skip
            assert target.peak_tflops["fp32"] == pytest.approx(fp32, abs=0.06)
            assert target.peak_tflops["fp16"] == pytest.approx(fp16, abs=0.06)
            assert target.peak_tflops["int8"] == pytest.approx(int8, abs=0.06)
            seen += 1
    assert seen >= 14


def test_the_l2_is_a_fact_of_every_target() -> None:
    sizes = {name: targets.load(name).l2_mb for name in targets.names()}
    assert (sizes["jetson-agx-orin-64gb"], sizes["jetson-orin-nx-16gb"]) == (4, 2)
    assert (sizes["jetson-xavier-nx"], sizes["h100"]) == (0.5, 50)
    assert all(0.5 <= size <= 72 for size in sizes.values())


def test_every_precision_has_a_peak() -> None:
    for target in everything():
        assert set(target.precisions) == set(target.peak_tflops) - {"tf32"}


def test_jetson_is_the_orin_nano_8gb_in_super_mode() -> None:
    jetson = targets.load("jetson")
    assert targets.aliases()["jetson"] == targets.resolve("jetson") == "jetson-orin-nano-8gb"
    assert (jetson.name, jetson.power_mode, jetson.jetpack) == (
        "jetson-orin-nano-8gb", "MAXN_SUPER", "6.2",
    )  # fmt: skip
    assert (jetson.tensorrt, jetson.cuda, jetson.python) == ("10.3", "12.6", "3.10")
    assert (jetson.max_opset, jetson.ir_version) == (18, 9)
    assert jetson.is_foreign
    assert 30 < jetson.peak_tflops["int8"] <= 40
    assert jetson == targets.load("jetson-orin-nano-8gb") == targets.load(jetson.full_name)


def test_a_power_mode_changes_clock_peaks_and_bandwidth() -> None:
    fast, slow = targets.load("jetson"), targets.load("jetson@15W")
    assert (fast.gpu_mhz, slow.gpu_mhz) == (1020, 625)
    assert (fast.bandwidth_gbs, slow.bandwidth_gbs) == (102, 68)
    assert slow.peak_tflops["int8"] == 20.5
    assert targets.load("jetson-agx-xavier@10w").sm_count == 4


def test_a_jetpack_changes_the_software() -> None:
    old = targets.load("jetson-agx-orin-64gb@jp5.1.2")
    assert (old.tensorrt, old.python, old.max_opset, old.ir_version) == ("8.5.2", "3.8", 16, 8)
    both = targets.load("jetson-orin-nx-16gb@MAXN@jp6.0")
    assert (both.power_mode, both.tensorrt) == ("MAXN", "8.6.2")
    assert both == targets.load("jetson-orin-nx-16gb@jp6.0@MAXN")


def test_super_mode_needs_jetpack_6_2() -> None:
    assert targets.load("jetson@jp6.0").power_mode == "15W"
    with pytest.raises(KDError) as caught:
        targets.load("jetson@MAXN_SUPER@jp6.0")
    assert caught.value.code == "target-mode"
    assert "6.2" in caught.value.message


@pytest.mark.parametrize(
    ("name", "code", "hint"),
    [
        ("jetson-orin-nano-8g", "target-unknown", "jetson-orin-nano-8gb"),
        ("jetsn", "target-unknown", "jetson"),
        ("../secrets", "target-unknown", "no target"),
        ("", "target-unknown", "no target"),
        ("jetson@15", "target-mode", "15W"),
        ("jetson@15W@25W", "target-mode", "one power mode and one JetPack, not also '25W'"),
        ("jetson@jp6.2@jp6.1", "target-jetpack", "not also 'jp6.1'"),
        ("jetson@jp7.1", "target-jetpack", "jp"),
        ("jetson-xavier-nx@jp6.2", "target-jetpack", "jp6.2"),
        ("h100@jp6.2", "target-jetpack", "jp6.2"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, code: str, hint: str) -> None:
    with pytest.raises(KDError) as caught:
        targets.load(name)
    assert caught.value.code == code
    assert hint in caught.value.message
    assert caught.value.fix


def test_a_workstation_takes_the_tensorrt_that_is_found() -> None:
    target = targets.load("h100")
    assert (target.tensorrt, target.backend) == ("8.6..11.99", None)
    assert not target.is_foreign
    assert (target.max_opset, target.ir_version) == (17, 8)  # what every version of the range reads
    found = target.with_backend("10.3.0.26")
    assert (found.backend, found.max_opset, found.ir_version) == ("10.3.0.26", 18, 9)
    assert target.with_backend("11.4.1").ir_version == 10
    assert target.with_backend("8.6.1.post1").max_opset == 17


@pytest.mark.parametrize(
    ("name", "version"),
    [("h100", "8.5.3"), ("h100", "12.0"), ("t4", "8.2"), ("cpu", "10.3"), ("jetson", "10.3"),
     ("h100", "unknown")],
)  # fmt: skip
def test_a_tensorrt_out_of_range_is_refused(name: str, version: str) -> None:
    with pytest.raises(KDError) as caught:
        targets.load(name).with_backend(version)
    assert caught.value.code == "target-backend"


def test_opset_never_exceeds_what_is_exported() -> None:
    for target in everything():
        assert target.max_opset <= targets.EXPORT_OPSET
    with pytest.raises(KDError):
        targets.onnx_limits("8.2.1")


def test_json_is_plain_and_stable() -> None:
    for target in everything():
        plain = target.to_json()
        assert json.loads(json.dumps(plain)) == plain
        assert plain == targets.load(target.full_name).to_json()
    assert targets.load("jetson").to_json() != targets.load("jetson@15W").to_json()


@pytest.mark.parametrize("break_it", [
    lambda t: t.update(watts=15),
    lambda t: t["nvidia"].update(sm_cuont=t["nvidia"]["sm_count"]),
    lambda t: t["nvidia"].pop("dla"),
    lambda t: t.pop("nvidia"),
    lambda t: t["facts"].pop("l2_mb"),
    lambda t: t["nvidia"]["dla"].pop("source"),
    lambda t: t["nvidia"]["dla"].update(source="nowhere"),
    lambda t: t["nvidia"]["dla"].update(kind="guessed"),
    lambda t: t["nvidia"]["dla"].update(value="none"),
    lambda t: t.update(acme={"cores": {"value": 4, "kind": "datasheet", "source": "nowhere"}}),
    lambda t: t.update(acme={"cores": {"value": [4], "kind": "datasheet", "source": "spec"}}),
    lambda t: t["facts"].update(memory_gb=8),
    lambda t: t["modes"]["15W"]["peak_tflops"].update(fp4=40.0),
    lambda t: t["modes"]["15W"].pop("bandwidth_gbs"),
    lambda t: t["nvidia"]["jetpacks"]["6.2"].pop("python"),
    lambda t: t["nvidia"].pop("jetpacks"),
    lambda t: t.update(default_mode="30W"),
    lambda t: t.update(default_jetpack="4.6"),
    lambda t: t.update(name="other"),
    lambda t: t.update(fixtures=[{"model": "x"}]),
])  # fmt: skip
def test_the_schema_is_closed(break_it: object) -> None:
    broken = copy.deepcopy(table("jetson-orin-nano-8gb"))
    schema.validate(broken, "jetson-orin-nano-8gb")
    break_it(broken)  # type: ignore[operator]
    with pytest.raises(KDError) as caught:
        schema.validate(broken, "jetson-orin-nano-8gb")
    assert caught.value.code == "target-invalid"


@pytest.mark.parametrize("name", ["jetson-orin-nano-8gb", "h100", "cpu"])
def test_a_file_of_version_1_is_read_into_the_vendor_s_table(name: str) -> None:
    """There NVIDIA's facts were among the others, and a CPU's cores were `sm_count`."""
    lines = (targets.FOLDER / f"{name}.toml").read_text().splitlines()
    flat = [
        line for line in lines if line.split(" ")[0] in {"compute_capability", "sm_count", "dla"}
    ]
    flat += [line for line in lines if line.startswith("tensorrt_m")]
    if name == "cpu":
        flat = ['dla = { value = 0, kind = "datasheet", source = "onnxruntime" }']
    rest = [line for line in lines if line not in (*flat, "[nvidia]")]
    at = rest.index("[facts]") + 1
    old = "\n".join([*rest[:at], *flat, *rest[at:]]).replace("[nvidia.jetpacks.", "[jetpacks.")
    old = old.replace("cores = {", "sm_count = {")
    assert "nvidia]" not in old
    assert schema.parse(old, name) == table(name)


def test_a_vendor_s_own_table_reaches_its_backend() -> None:
    intel = targets.load("intel-cpu")
    assert (intel.runtime, intel.vendor) == ("openvino", {"cpu_vendor": "GenuineIntel"})
    assert intel.sources["vendor.cpu_vendor"].startswith("datasheet: ")
    assert (targets.load("cpu").runtime, targets.load("jetson").runtime) == (
        "onnxruntime", "tensorrt",
    )  # fmt: skip


def test_loading_a_target_imports_nothing_heavy() -> None:
    code = (
        "import sys, kdcompile.targets as t; t.load('jetson'); "
        "print([m for m in ('torch', 'onnx', 'numpy', 'scipy', 'tensorrt', 'pydantic') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
