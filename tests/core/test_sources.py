"""The key of a pass covers the files and libraries that its module imports, and no others."""

import ast
import sys
from pathlib import Path

import pytest

from kdcompile.core import sources
from kdcompile.core.sources import source_key, sources_of
from kdcompile.passes.keys import SHOW_AND_CHECK
from kdcompile.passes.stages import STAGES


def _imports(path):
    """Full names of what a file imports at run time, by Python's own parser."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("stage", STAGES)
def test_all_that_a_pass_imports_is_in_its_key(stage):
    found = sources_of(STAGES[stage].module)
    modules = {name: path for name, path in found.files.items() if name.startswith("kdcompile")}
    missing = set()
    for path in modules.values():
        for name in _imports(path):
            first = name.split(".")[0]
            if first == "kdcompile":
                missing |= {name} if sources._path(name) and name not in modules else set()
            elif first not in sys.stdlib_module_names:
                library = sources.DISTRIBUTIONS.get(first, first)
                missing |= {library} - found.libraries
    assert missing == set()
    assert not any(name.startswith(("kdcompile.cli", "kdcompile.ci")) for name in modules)


def test_what_a_registry_loads_is_in_the_key():
    for stage, package in (("distill", "distill.recipes"), ("verify", "gates")):
        folder = Path(sources._path(f"kdcompile.{package}")).parent
        names = {f"kdcompile.{package}.{path.stem}" for path in folder.glob("[!_]*.py")}
        assert len(names) > 10
        assert names <= set(sources_of(STAGES[stage].module).files)


def test_files_that_the_code_reads_are_in_the_key():
    for stage in ("compile", "bundle"):
        found = sources_of(f"kdcompile.passes.{stage}").files
        assert {"kdcompile.remote.agent.candidates", "remote/kit/build_engine.py"} <= set(found)
    assert "bundle/templates/infer.py" in sources_of("kdcompile.passes.bundle").files
    assert "targets/latency.toml" in sources_of("kdcompile.passes.search").files
    assert "targets/jetson-orin-nano-8gb.toml" not in sources_of("kdcompile.passes.search").files


def test_libraries():
    """SciPy chooses calibration images; a chart's library is of the report alone."""
    found = {stage: sources_of(STAGES[stage].module).libraries for stage in STAGES}
    assert "scipy" in found["calibrate"]
    assert "onnxscript" in found["export"]
    assert "matplotlib" not in found["distill"]
    assert "onnxruntime" in found["compile"] & found["calibrate"] & found["export"]
    assert "torch" in (found["teacher"] & found["distill"]) - SHOW_AND_CHECK


def test_a_module_that_is_imported_for_types_is_not(monkeypatch, tmp_path):
    (tmp_path / "a.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from kdcompile import b\n"
        "    import scipy\n\ndef f():\n    from kdcompile import (\n        c,  # why\n"
        "        d as e,\n    )\n    import PIL.Image as image, onnx\n"
    )
    for name in "bcd":
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(
        sources, "_path", lambda name: next(tmp_path.glob(f"{name.split('.')[-1]}.py"), None)
    )
    monkeypatch.setattr(sources, "_module", sources._module.__wrapped__)
    found = sources_of.__wrapped__("kdcompile.a")
    assert set(found.files) == {"kdcompile.a", "kdcompile.c", "kdcompile.d"}
    assert found.libraries == {"pillow", "onnx"}


def test_a_release_is_keyed_by_its_version_and_a_checkout_by_its_files(monkeypatch):
    assert sources.is_checkout()
    files = source_key("kdcompile.core.errors", 7)
    assert set(files) == {"core/errors.py"}
    monkeypatch.setattr(sources, "is_checkout", lambda: False)
    assert source_key("kdcompile.core.errors", 7) == 7
