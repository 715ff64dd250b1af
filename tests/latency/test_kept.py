"""Names of kept baselines: classes of devices, files, and what cannot be a name."""

import pytest

from kdcompile.core.errors import KDError
from kdcompile.latency import baseline_store


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"module": "NVIDIA Jetson Orin Nano", "gpu": "Orin", "cpu": "ARM"},
         "nvidia-jetson-orin-nano"),
        ({"module": None, "gpu": "NVIDIA H100 80GB HBM3", "cpu": "x"}, "nvidia-h100-80gb-hbm3"),
        ({"gpu": None, "cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz"}, "intel-xeon-cpu-2-20ghz"),
        ({"cpu": "", "platform": "linux aarch64"}, "linux-aarch64"),
        ({"cpu": "../../etc"}, "etc"),
        ({}, "device"),
    ],
)  # fmt: skip
def test_a_class_is_named_after_its_device(facts, name):
    assert baseline_store.device_class({"facts": facts, "state": {}}) == name
    assert baseline_store.check_name(name, "class") == name


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "-x", "a b", "a\\b"])
def test_names_that_are_no_file(name):
    with pytest.raises(KDError) as error:
        baseline_store.check_name(name, "baseline")
    assert error.value.code == "baseline-name"
    assert error.value.fix


def test_found_by_name_or_class_and_name(tmp_path):
    for text in ("orin/a", "orin/b", "xeon/a"):
        (tmp_path / text).parent.mkdir(exist_ok=True)
        (tmp_path / f"{text}.json").write_text("{}")

    def found(*words):
        return [f"{f.parent.name}/{f.stem}" for f in baseline_store.find(tmp_path, *words)]

    assert found(None) == ["orin/a", "orin/b", "xeon/a"]
    assert found("a") == ["orin/a", "xeon/a"]
    assert found("xeon/a") == ["xeon/a"]
    assert found("a", "orin") == ["orin/a"]
    assert found(None, "none") == []
    with pytest.raises(KDError, match="no baseline is called 'b'") as error:
        found("b", "xeon")
    assert "name one of a" in error.value.fix
    with pytest.raises(KDError) as error:
        baseline_store.find(tmp_path / "none", "crowd")
    assert "kdcompile baseline init ARTIFACT crowd" in error.value.fix
