"""What the wheel holds, and that nothing of it is importable by a bare name."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("kdcompile", "kernels", "targets", "calib", "examples")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__", ".kdcompile", ".teacher", "dist")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "-w", str(source / "out"), str(source)], check=True)
    return zipfile.ZipFile(next((source / "out").glob("*.whl")))


def test_everything_ships_under_one_name(wheel):
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kdcompile"}
    assert {
        "kdcompile/py.typed",
        "kdcompile/kernels/gram_relation.py",
        "kdcompile/targets/jetson-orin-nano-8gb.toml",
        "kdcompile/calib/observers.py",
        "kdcompile/remote/agent/worker.py",
        "kdcompile/remote/kit/build_engine.py",
        "kdcompile/bundle/templates/report.html.j2",
        "kdcompile/config/template.toml",
        "kdcompile/examples/digits/teacher.safetensors",
        "kdcompile/examples/digits/digits.npz",
        "kdcompile/examples/digits/NOTICE.md",
        "kdcompile/examples/digits/kdcompile.toml",
        "kdcompile/examples/cells/detector.safetensors",
        "kdcompile/examples/cells/counter.safetensors",
        "kdcompile/examples/cells/images/BloodImage_00007.jpg",
        "kdcompile/examples/cells/test.json",
        "kdcompile/examples/cells/red_cells.jsonl",
        "kdcompile/examples/cells/NOTICE.md",
        "kdcompile/examples/street/teacher.safetensors",
        "kdcompile/examples/cifar10/teacher.safetensors",
        "kdcompile/examples/cifar10/kdcompile.toml",
        "kdcompile/examples/shanghaitech/kdcompile.toml",
    } <= set(names)


def test_every_source_file_is_in_it(wheel):
    names = set(wheel.namelist())
    for folder in FOLDERS:
        prefix = "" if folder == "kdcompile" else "kdcompile/"
        for path in (ROOT / folder).rglob("*.py"):
            if "__pycache__" not in path.parts and ".kdcompile" not in path.parts:
                assert f"{prefix}{path.relative_to(ROOT).as_posix()}" in names


def test_the_licence_and_the_notice_ship(wheel):
    licences = [n for n in wheel.namelist() if ".dist-info/licenses/" in n]
    assert any(n.endswith("LICENSE") for n in licences)
    assert any(n.endswith("NOTICE.md") for n in licences)
