"""How light the package is to import. Who may import whom is in pyproject.toml: `make lint`."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "onnx", "onnxruntime", "scipy", "tensorrt", "tensorrt_rtx", "matplotlib"}


def _run(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    loaded = json.loads(
        _run("import sys, json, kdcompile, kdcompile.cli; print(json.dumps(sorted(sys.modules)))")
    )
    assert not HEAVY & {name.split(".")[0] for name in loaded}
    assert "kdcompile.api" not in loaded


def test_help_imports_little():
    code = (
        "import sys\nfrom kdcompile.cli import cli\n"
        "cli(['--help'], standalone_mode=False)\n"
        "print('loaded', sorted(m for m in sys.modules if m in "
        f"{sorted(HEAVY | {'numpy', 'pydantic', 'jinja2', 'rich'})!r}))"
    )
    assert _run(code).splitlines()[-1] == "loaded []"


def test_packages_are_listed():
    """Each folder with an __init__.py must be named in pyproject.toml."""
    import tomllib

    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "kdcompile").rglob("__init__.py")
    }
    for name in ("kernels", "targets", "calib", "examples"):
        on_disk |= {
            ".".join(("kdcompile", *path.parent.relative_to(ROOT).parts))
            for path in (ROOT / name).rglob("__init__.py")
        }
    assert listed == on_disk
