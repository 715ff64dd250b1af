"""Who may import whom (docs/design.md), and how light the package is to import."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"errors", "lazy", "factory", "logs", "progress"}
CORE = {"spec", "spec_distill", "spec_deploy", "spec_gates", "spec_search", "artifact", "report"}
ALLOWED = {
    "errors": set(),
    "lazy": {"errors"},
    "factory": {"errors"},
    "logs": set(),
    "progress": {"logs"},
    "targets": {"errors"},
    "spec_distill": set(),
    "spec_deploy": {"spec_distill"},
    "spec_search": {"spec_distill"},
    "spec_gates": {"spec_distill"},
    "spec": {"errors", "targets", "spec_distill", "spec_deploy", "spec_gates", "spec_search"},
    "spec_file": {"errors", "targets", "spec"},
    "disk": {"errors"},
    "files": {"disk", "locks"},
    "locks": {"errors"},
    "artifact": {"errors", "targets", "disk", "files", "locks"},
    "report": {"errors", "targets"},
    "kernels": set(),
    "data": BASE | {"artifact", "spec", "spec_distill", "spec_deploy", "kernels"},
    "models": BASE | {"artifact", "spec"},
    "calib": BASE | {"artifact", "data", "spec", "kernels", "targets"},
    "export": BASE | CORE | {"targets", "models", "data"},
    "backends": BASE | CORE | {"targets", "calib", "data"},
    "bench": BASE | {"artifact", "targets", "backends", "bundle"},
    "distributed": {"errors", "artifact"},
    "distill": BASE | CORE | {"targets", "data", "models", "calib", "kernels", "distributed"},
    "search": BASE | CORE
    | {"targets", "data", "models", "export", "calib", "distill", "backends", "bench"},
    "delta": BASE | CORE | {"data", "models", "distill", "gates"},
    "gates": BASE | CORE
    | {"targets", "data", "models", "export", "calib", "backends", "bench", "bundle"},
    "ci": BASE | CORE | {"bench"},
    "parity": BASE | CORE | {"targets", "data", "models", "export", "calib", "backends"},
    "bundle": BASE | CORE | {"targets", "data", "disk", "locks"},
    "doctor": BASE | CORE | {"targets"},
    "doctor_board": {"errors", "targets", "doctor"},
    "init": BASE | CORE | {"targets", "examples"},
    "examples": {"data", "distill", "models", "spec", "spec_file"},
}  # fmt: skip
FREE = {"pipeline", "cli", "__main__", "__init__", "pytest_plugin", "pytest_latency"}
HEAVY = {"torch", "onnx", "onnxruntime", "scipy", "tensorrt", "tensorrt_rtx", "matplotlib"}


def _modules():
    for folder, prefix in (
        (ROOT / "kdcompile", ()),
        *((ROOT / name, (name,)) for name in ("kernels", "targets", "calib", "examples")),
    ):
        for path in sorted(folder.rglob("*.py")):
            parts = (*prefix, *path.relative_to(folder).with_suffix("").parts)
            if "kit" not in parts and parts[-1] != "worker":
                yield parts[0], path


def _imported(path):
    """Names of kdcompile's parts that a file imports at run time, at any depth."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdcompile":
            parts = (node.module or "").split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("kdcompile."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize(("part", "path"), list(_modules()), ids=lambda v: getattr(v, "stem", v))
def test_direction(part, path):
    if part in FREE:
        return
    found = set(_imported(path)) - {part, "__version__"}
    assert found <= ALLOWED[part], f"{path} may not import {sorted(found - ALLOWED[part])}"


def _run(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    loaded = json.loads(
        _run("import sys, json, kdcompile, kdcompile.cli; print(json.dumps(sorted(sys.modules)))")
    )
    assert not HEAVY & {name.split(".")[0] for name in loaded}


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
