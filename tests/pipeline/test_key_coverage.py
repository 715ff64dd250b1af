"""A stage's key covers the code and the libraries that the stage imports."""

import ast
import functools
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from kdcompile.pipeline.stages import STAGES

# imports that need not be in a stage's key, and why
BASE = {
    "", "artifact", "errors", "files", "lazy", "disk", "locks", "factory", "distributed", "spec",
    "spec_deploy", "spec_distill", "spec_gates", "spec_file", "logs", "progress",
}  # fmt: skip  # what they give is in the key as values
TYPES = "it takes types and names of it; what is in a result of it is another input"
ELSEWHERE = {
    ("teacher", "calib"): "of a training in int8, which the stage does not do",
    ("teacher", "targets"): TYPES,
    ("distill", "calib"): "in the key through [quantize] where it trains in int8",
    ("distill", "targets"): TYPES,
    ("calibrate", "targets"): TYPES,
    ("search", "bundle"): "it times networks, of which none is a bundle",
    ("export", "kernels"): "augmentation and densities, of which it uses neither",
    ("export", "targets"): TYPES,
    ("search", "report"): TYPES,
    ("compile", "report"): TYPES,
    ("verify", "targets"): "the values of the target are in its key",
    ("verify", "kernels"): "augmentation and densities to train on",
    ("verify", "calib"): "of mixed candidates, which `compile` made",
    ("verify", "bundle"): "it reads an earlier bundle, whose manifest is in its key",
    ("bundle", "data"): "preprocessing, which it copies from the export",
    ("bundle", "calib"): "of mixed candidates, which `compile` made",
}
DRAWS = {"rich", "pydantic", "safetensors"}  # they show, check or copy, and compute nothing
LIBRARIES = {
    ("search", "matplotlib"): "a chart beside the result",
    ("teacher", "scipy"): "reads the points of a .mat file, as they stand there",
    ("distill", "scipy"): "the same",
    ("export", "scipy"): "the same",
    ("calibrate", "scipy"): "the same",
    ("compile", "scipy"): "the same",
    ("teacher", "triton"): "of training",
    ("export", "triton"): "of training",
    ("calibrate", "triton"): "of training",
    ("compile", "triton"): "of training",
}
SHIPPED = {"kit", "templates"}  # runs on the board
WORKER = "worker.py"  # its TensorRT is in the board's facts, or in the target


@functools.cache
def _imports(package):
    """Names of kdcompile's parts and of libraries that a package's code imports."""
    found = find_spec(f"kdcompile.{package}")
    places = found.submodule_search_locations
    files = [Path(found.origin)] if not places else Path(places[0]).rglob("*.py")
    found = set()
    for file in files:
        if SHIPPED & set(file.parts) or file.name == WORKER:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {tuple(name.split(".")) for name in names}
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_key_covers_all_that_the_code_imports(stage):
    parts, libraries = set(), set()
    for package in STAGES[stage].packages:
        for name, *rest in _imports(package):
            if name == "kdcompile":
                parts.add(rest[0] if rest else "")
            elif name not in sys.stdlib_module_names:
                libraries.add({"PIL": "pillow"}.get(name, name))
    known = set(STAGES[stage].packages) | BASE
    assert {p for p in parts - known if (stage, p) not in ELSEWHERE} == set()
    libraries -= {*STAGES[stage].libraries, *DRAWS}
    assert {one for one in libraries if (stage, one) not in LIBRARIES} == set()


def test_every_exception_is_one():
    assert all(p not in STAGES[s].packages for s, p in ELSEWHERE)
    assert all(name not in STAGES[s].libraries for s, name in LIBRARIES)
