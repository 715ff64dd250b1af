"""The agent's file: its size, its bytes, its Python, and that it runs from wherever it lies."""

import ast
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from kdcompile.core.sources import sources_of
from kdcompile.data import tiles
from kdcompile.remote import archive
from kdcompile.remote.agent.messages import message, read
from kdcompile.remote.archive import NAME, START, agent_zip, bare
from kdcompile.remote.client import boot_command, boot_source

LARGEST = 63_000
SOURCES = {name: path for name, path in sources_of(START).files.items() if name.startswith("kdc")}
REMOTE = Path(archive.__file__).parent
TIMING = [REMOTE / "frame.py", REMOTE / "frame_worker.py"]  # of whole frames, beside the agent
TEXTS = [*sorted(SOURCES.values()), REMOTE / "kit" / "build_engine.py", *TIMING,
         Path(tiles.__file__)]  # fmt: skip
NEWER = {"strict", "slots", "kw_only"}  # keywords of calls that 3.8 does not take
NOT_THERE = {"pairwise", "batched", "Self", "override", "assert_never", "UTC", "StrEnum"}


def test_it_is_small_and_its_bytes_depend_on_the_sources_alone():
    found = agent_zip()
    assert len(found) <= LARGEST
    assert agent_zip.__wrapped__() == found
    with ZipFile(io.BytesIO(found)) as opened:
        names = opened.namelist()
        assert {entry.date_time for entry in opened.infolist()} == {archive.OLDEST}
    assert names == sorted(names)
    own = {f"{name.replace('.', '/')}.py" for name in SOURCES if name.count(".") > 2}
    assert "kdcompile/remote/agent/worker.py" in own
    assert own <= set(names)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_it_is_python_38_with_numpy_alone(path):
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    imported, names, keywords = set(), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported.update(name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
            names.update(name.name for name in node.names)
        elif isinstance(node, ast.Call):
            keywords.update(keyword.arg for keyword in node.keywords)
    allowed = {"numpy", "tensorrt", "onnxruntime", "kdcompile"}
    allowed |= {"PIL"} if path in TIMING else set()
    allowed |= {"frame"} if path.stem == "build_engine" else set()  # which lies beside it
    assert imported - set(sys.stdlib_module_names) <= allowed
    assert not names & NOT_THERE
    assert not keywords & NEWER
    has_types = any(isinstance(n, ast.FunctionDef) for n in ast.walk(tree))
    assert not has_types or "from __future__ import annotations" in path.read_text()
    _no_numpy_typing(tree)


def _no_numpy_typing(tree):
    """JetPack 5 has numpy 1.17, where there is none: it is imported for type checkers alone."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            assert node.module != "numpy.typing"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_only_docstrings_and_comments_are_left_out(path):
    text = path.read_text()
    found = bare(text)
    assert _without_docstrings(found) == _without_docstrings(text)
    assert len(found.splitlines()) == len(text.splitlines())
    assert "#" not in found
    assert not any(ast.get_docstring(node) for node in _with_bodies(ast.parse(found)))


def _with_bodies(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]


def _without_docstrings(text):
    tree = ast.parse(text)
    for node in _with_bodies(tree):
        begin = ast.get_docstring(node) is not None
        node.body = [part for part in node.body[begin:] if not isinstance(part, ast.Pass)]
    return ast.dump(tree)


def test_a_string_that_is_no_docstring_stays():
    text = '"""Doc."""\nclass A:\n    """Doc\n\n    of it."""\n'
    text += 'x = """a # b\nc"""  # why\n"-".join("ab")\n'
    assert bare(text) == '\nclass A:\n    pass\n\n\nx = """a # b\nc"""\n"-".join("ab")\n'


def talk(command, sent=b"", **options):
    """What a worker answers to `hello` and `quit`, its connection open until it ends."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )
    asked = message({"id": 1, "op": "hello"}) + message({"id": 2, "op": "quit"})
    process.stdin.write(sent + asked)
    process.stdin.flush()
    told = io.BytesIO(process.stdout.read())
    assert (process.wait(), process.stderr.read()) == (0, b"")
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()
    return list(iter(lambda: read(told), None))


def test_it_starts_over_standard_input_in_isolation_and_leaves_no_file(tmp_path):
    environment = {"KDCOMPILE_CACHE": str(tmp_path / "work"), "PATH": os.defpath}
    command = [sys.executable, "-I", *boot_command("onnxruntime")]
    told, hello, _ = talk(command, boot_source() + agent_zip(), env=environment, cwd=tmp_path)
    assert told["ok"] == {"work": str(tmp_path / "work")}
    assert hello["ok"]["backend"] == "onnxruntime"
    assert [path.name for path in tmp_path.rglob("*")] == ["work", "blobs"]


def test_it_needs_no_site_packages_to_say_that_numpy_is_absent(tmp_path):
    (tmp_path / NAME).write_bytes(agent_zip())
    command = [sys.executable, "-S", "-I", tmp_path / NAME]
    done = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (4, b"")
    assert read(io.BytesIO(done.stdout))["error"]["code"] == "numpy-missing"


@pytest.fixture
def folder(tmp_path):
    """A folder with spaces in its name that nothing can be written to."""
    made = tmp_path / "a read only folder"
    made.mkdir()
    (made / NAME).write_bytes(agent_zip())
    made.chmod(0o500)
    yield made
    made.chmod(0o700)


def test_it_runs_from_a_read_only_folder_with_spaces(folder, tmp_path):
    hello, bye = talk([sys.executable, folder / NAME, "onnxruntime"], cwd=tmp_path)
    assert hello["ok"]["backend"] == "onnxruntime"
    assert bye["ok"] == {}
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_the_kit_is_a_command_of_it(onnx_files, make_kit, tmp_path):
    kit = make_kit(onnx_files())
    shutil.move(kit, tmp_path / "the kit")
    command = [sys.executable, NAME, "kit", "--backend", "onnxruntime", "--iterations", "1"]
    done = subprocess.run(
        [*command, "--precision", "fp32", "--json"],
        cwd=tmp_path / "the kit", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chosen"] == "fp32"
