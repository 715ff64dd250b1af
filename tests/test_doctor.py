"""The doctor finds what stops a build, and says how to mend it."""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

import pytest

from kdcompile.environment import doctor
from kdcompile.environment.doctor import Check

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.fixture
def installed(monkeypatch):
    """Pretend that exactly these distributions are there."""

    def pretend(**versions):
        def version(name):
            key = name.replace("-", "_")
            if key not in versions:
                raise importlib.metadata.PackageNotFoundError(name)
            return versions[key]

        monkeypatch.setattr(importlib.metadata, "version", version)

    return pretend


def test_both_onnxruntimes_are_an_error_with_the_fix(installed):
    installed(onnxruntime="1.20.0", onnxruntime_gpu="1.20.1")
    check = doctor._onnxruntime()
    assert check.status == "error"
    assert "1.20.0" in check.detail
    assert "1.20.1" in check.detail
    assert check.fix == (
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'kdcompile[gpu]'"
    )
    assert doctor.exit_code([check]) == 4


def test_no_onnxruntime_is_an_error(installed):
    installed()
    check = doctor._onnxruntime()
    assert (check.status, "kdcompile[cpu]" in check.fix) == ("error", True)


def test_half_uninstalled_onnxruntime_is_an_error(installed, monkeypatch):
    installed(onnxruntime_gpu="1.20.1")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check = doctor._onnxruntime()
    assert check.status == "error"
    assert check.fix.endswith("onnxruntime-gpu")


def test_old_and_absent_libraries_are_errors(installed):
    installed(torch="2.7.1+cu126", numpy="2.0")
    by_name = {check.name: check for check in doctor._libraries()}
    assert by_name["torch"].status == "error"
    assert "older than 2.8" in by_name["torch"].detail
    assert by_name["numpy"].status == "ok"
    assert by_name["scipy"].detail.startswith("absent")


def test_every_requirement_has_its_purpose_and_the_python_is_the_package_s():
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    assert {doctor._parsed(r)[0] for r in project["dependencies"]} == set(doctor.PURPOSE)
    assert project["requires-python"] == f">={'.'.join(map(str, doctor.LEAST_PYTHON))}"


@pytest.mark.parametrize(
    ("text", "numbers"), [("2.13.0+cpu", (2, 13, 0)), ("10", (10,)), ("1.2rc1", (1, 2)), ("x", ())]
)
def test_versions_compare_as_numbers(text, numbers):
    assert doctor._numbers(text) == numbers


def test_only_errors_stop_a_build():
    fine = [Check("a", "ok", ""), Check("b", "missing", ""), Check("c", "warning", "")]
    assert doctor.exit_code(fine) == 0
    assert doctor.exit_code([*fine, Check("d", "error", "")]) == 4


def test_jetson_is_read_from_its_release_file(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "TEGRA", tmp_path / "nv_tegra_release")
    assert "not a Jetson" in doctor._jetson().detail
    doctor.TEGRA.write_text("# R36 (release), REVISION: 4.3\nmore\n")
    assert doctor._jetson().detail == "this is a Jetson: # R36 (release), REVISION: 4.3"


def test_broken_driver_is_a_warning(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/bin/false")
    check = doctor._driver()
    assert (check.status, bool(check.fix)) == ("warning", True)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert doctor._driver().status == "missing"


def test_full_disk_is_a_warning(monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e12)
    assert doctor._disk().status == "warning"


def test_examination_of_this_machine_is_complete():
    names = [check.name for check in doctor.examine()]
    assert {"python", "kdcompile", "torch", "onnxruntime", "triton", "tensorrt", "tensorrt-rtx",
            "NVIDIA driver", "Jetson", "disk"} <= set(names)  # fmt: skip
    assert len(names) == len(set(names))
