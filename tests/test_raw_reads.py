"""Files from outside go through `core.readers`, `core.arrays` and `models.weights`, and no others.

A module that reads a file in another way is listed here, with where that file is from: kdcompile's
own package or store, or the system. One that reads what a user, a board or a bundle brings belongs
to the readers instead.
"""

import ast
from pathlib import Path

import pytest

import kdcompile

PACKAGE_FOLDER = Path(kdcompile.__file__).parent
OTHERS = (PACKAGE_FOLDER.parent / name for name in ("calib", "kernels", "targets"))
SOURCES = [path for folder in (PACKAGE_FOLDER, *OTHERS) for path in sorted(folder.rglob("*.py"))]

RAW = {"np.load", "torch.load", "tomllib.load", "tomllib.loads",
       "json.load", "json.loads", "safe_open", "zipfile.ZipFile", "ZipFile"}  # fmt: skip
READERS = {"core/readers.py", "core/arrays.py", "models/weights.py", "delta/file.py"}
PACKAGE = {  # files of kdcompile itself, and texts that it has just made
    "bundle/python_sample.py", "bundle/report/page.py", "bundle/samples.py", "cli/terminal.py",
    "config/template.py", "core/sources.py", "kernels/", "latency_model/parameters.py",
    "latency_model/reference_kernels.py", "passes/why.py", "targets/fixtures.py",
    "targets/rules_file.py",
}  # fmt: skip
STORE = {  # what the same build, or the same process, has written
    "backends/candidate_runner.py", "backends/openvino_.py", "backends/parity_inputs.py",
    "backends/serve.py", "backends/tensorrt_rtx_.py", "core/backends.py", "core/content.py",
    "core/files.py", "core/locks.py", "core/store.py", "distill/short_run.py", "distill/state.py",
    "distill/teacher_cache.py", "distill/train.py", "latency/frame_sample.py",
    "passes/bundle.py", "passes/distill.py",
}  # fmt: skip
SYSTEM = {"bundle/distributions.py", "environment/doctor.py", "latency/environment.py"}
ELSEWHERE = {  # runs without kdcompile, on a board or in a bundle, or reads with limits of its own
    "bundle/templates/",
    "remote/",
}
ALLOWED = (*READERS, *PACKAGE, *STORE, *SYSTEM, *ELSEWHERE)


def raw_reads(source):
    """The lines at which a module reads a file without a limit."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    found = ((node.lineno, ast.unparse(node.func)) for node in calls)
    return [
        (line, name)
        for line, name in found
        if name in RAW or ("." in name and name.rpartition(".")[2] in ("read_text", "read_bytes"))
    ]


@pytest.mark.parametrize(
    "line",
    ["path.read_text()", "(a / b).read_bytes()", "np.load(path)", "json.loads(text)",
     "with ZipFile(path) as z: pass", "x = tomllib.loads(t)"],
)  # fmt: skip
def test_the_scan_finds(line):
    assert len(raw_reads(line)) == 1
    assert not raw_reads("read_text(path); read_json(path); f.read(); arrays.load(path)")


def place(path):
    inside = path.is_relative_to(PACKAGE_FOLDER)
    return path.relative_to(PACKAGE_FOLDER if inside else PACKAGE_FOLDER.parent).as_posix()


def test_no_other_module_reads_files_in_its_own_way():
    found = {
        f"{name}:{line}: {call}"
        for path in SOURCES
        for name in [place(path)]
        if not name.startswith(ALLOWED)
        for line, call in raw_reads(path.read_text())
    }
    assert found == set()


def test_the_list_names_no_module_that_reads_nothing():
    reading = {place(path) for path in SOURCES if raw_reads(path.read_text())}
    assert [one for one in ALLOWED if not any(name.startswith(one) for name in reading)] == []
