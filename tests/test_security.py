"""What a bundle, a weight file, a name or a folder of somebody else cannot do."""

import ast
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from hostile import Active, hostile

import kdcompile
from kdcompile.bundle.card import write_card
from kdcompile.bundle.render import markdown
from kdcompile.bundle.report.page import html
from kdcompile.bundle.samples import Tensor
from kdcompile.bundle.text import text_summary
from kdcompile.core.errors import KDError
from kdcompile.core.files import replacing
from kdcompile.core.report import GateResult, Report
from kdcompile.models.weights import read_weights
from kdcompile.remote.ssh import parse_ssh

PACKAGE = Path(kdcompile.__file__).parent
FOLDERS = [PACKAGE, *(PACKAGE.parent / name for name in ("calib", "kernels", "targets"))]
SOURCES = [path for folder in FOLDERS for path in sorted(folder.rglob("*.py"))]
CALLS_A_SHELL = {
    "os.system", "os.popen", "os.spawnl", "os.spawnlp", "subprocess.getoutput", "pty.spawn",
    "subprocess.getstatusoutput", "asyncio.create_subprocess_shell", "commands.getoutput",
}  # fmt: skip
STARTS = {"run", "Popen", "call", "check_call", "check_output"}
LOADS_CODE = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "yaml.load", "dill.load",
    "joblib.load", "yaml.unsafe_load", "shelve.open", "eval", "tempfile.mktemp", "mktemp",
}  # fmt: skip
RUNS_TEXT = {"bootstrap.py"}  # becomes the worker that is sent to it
READS_XML = {"lxml", "xml.sax", "xml.dom"}


def _faults(source: str, name: str = "a.py") -> list[str]:
    """What in a module's text could run somebody's text, with its line."""
    return [
        f"{name}:{node.lineno}: {fault}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call | ast.Import | ast.ImportFrom)
        and (fault := _fault(node, name)) is not None
    ]


def _fault(node: ast.Call | ast.Import | ast.ImportFrom, name: str) -> str | None:
    if not isinstance(node, ast.Call):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names]
        return next((f"imports {m}" for m in modules if m in READS_XML), None)
    called = ast.unparse(node.func)
    options = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if called in CALLS_A_SHELL | LOADS_CODE or (called == "exec" and name not in RUNS_TEXT):
        return f"calls {called}"
    if options.get("shell", "False") != "False" or options.get("allow_pickle") == "True":
        return f"{called} with shell or allow_pickle"
    if called.endswith("torch.load") and options.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if called.startswith("subprocess.") and called.split(".")[1] in STARTS and node.args:
        first = node.args[0]
        if isinstance(first, ast.JoinedStr | ast.BinOp) or (
            isinstance(first, ast.Constant) and isinstance(first.value, str)
        ):
            return "a command that is one string"
    if called == "Environment" and "loader" in options and "autoescape" not in options:
        return "templates that do not say whether they escape"
    return None


@pytest.mark.parametrize(
    "line",
    [
        "os.system(command)", "subprocess.run(words, shell=True)", "subprocess.Popen(f'ls {name}')",
        "subprocess.check_output('ls ' + name)", "subprocess.run('ls')", "pickle.loads(data)",
        "torch.load(path)", "torch.load(path, weights_only=False)", "yaml.load(text)",
        "np.load(path, allow_pickle=True)", "eval(text)", "exec(text)", "tempfile.mktemp()",
        "Environment(loader=loader)", "import xml.sax",
    ],
)  # fmt: skip
def test_the_scan_finds(line):
    assert len(_faults(line)) == 1


def test_no_module_runs_what_it_reads():
    assert len(SOURCES) > 200
    found = [fault for path in SOURCES for fault in _faults(path.read_text(), path.name)]
    assert found == []


class Planted:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.safetensors"])
def test_weights_that_are_a_pickle_run_nothing(tmp_path, name):
    mark = tmp_path / "ran"
    (tmp_path / name).write_bytes(pickle.dumps({"w": Planted(mark)}))
    with pytest.raises(KDError, match=r"weights|pickle|safetensors"):
        read_weights(tmp_path / name)
    assert not mark.exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert mark.is_dir(), "the plant works where pickles are believed"


def test_weights_in_a_torch_archive_run_nothing(tmp_path):
    import torch

    mark = tmp_path / "ran"
    torch.save({"w": torch.zeros(2), "more": Planted(mark)}, tmp_path / "w.pt")
    with pytest.raises(KDError):
        read_weights(tmp_path / "w.pt")
    assert not mark.exists()


def test_arrays_that_are_pickles_run_nothing(tmp_path):
    from kdcompile.data.formats.npz import photos

    mark = tmp_path / "ran"
    objects = np.empty(1, object)
    objects[0] = Planted(mark)
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 4, 4), np.uint8), y=objects)
    with pytest.raises(KDError, match="cannot be read safely"):
        photos(tmp_path, "a.npz")
    assert not mark.exists()


SCRIPT = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>"


def test_no_name_is_run_by_the_page(tmp_path):
    step = {"step": 0, "loss": 1.0, "terms": {SCRIPT: 1.0}, "val_top1": 0.5, "stage": SCRIPT}
    np.savez(tmp_path / "example_best.npz", pixels=np.zeros((8, 8, 3), np.uint8))
    page = html(hostile(SCRIPT), tmp_path, [step, step | {"step": 1, "stage": "b"}])
    parser = Active()
    parser.feed(page)
    assert parser.found == []
    assert sum(SCRIPT in text for text in parser.texts) > 20, "the names are there, as text"


def test_the_search_finds_what_a_page_runs():
    parser = Active()
    parser.feed(f"<p title=\"{SCRIPT}\"><a href='javascript:x'>")
    assert parser.found == ["script", "img src=x", "img onerror", "a href"]


def test_no_name_is_a_tag_of_the_texts(tmp_path):
    report = hostile(SCRIPT)
    write_card(tmp_path, report, ([Tensor("image", "FP32", (1, 3, 4, 4))],) * 2)
    for text in (markdown(report), (tmp_path / "MODEL_CARD.md").read_text()):
        assert "&lt;script" in text
        told = [line for line in text.splitlines() if not line.startswith("    ")]  # else code
        assert not [line for line in told if "<script" in line or "<img" in line]


def test_no_name_talks_to_the_terminal():
    error = KDError("x", "a\x1b[2J\nb", where="c\r\n  fix:   d\x00", fix="e\u202ef\udcff")
    assert str(error) == (
        "error[x]: a\\x1b[2J b\n  where: c    fix:   d\\x00\n  fix:   e\\u202ef\\udcff"
    )
    gate = GateResult("g\x1b]0;x\x07", "passed", "host", True, "", "", "why\nb", ())
    report = Report("a\x1b[2J", "b", "passed", 0, (gate,), (), {}, {})
    assert not [c for c in text_summary(report) if not c.isprintable() and c != "\n"]


@pytest.mark.parametrize(
    "via",
    [
        "ssh://-oProxyCommand=touch ran", "ssh://-oProxyCommand=x@board", "ssh://a;b@board",
        "ssh://$(x)@board", "ssh://board;x", "ssh://board x", "ssh://`x`", "ssh://board:22;x",
        "ssh://board?python=python3;x", "ssh://board?python=-c", "ssh://board?python=$(x)",
        "ssh://board?python=a b", "ssh://board?python='a'", "ssh://board/path",
    ],
)  # fmt: skip
def test_no_address_reaches_a_shell_or_an_option(via):
    with pytest.raises(KDError) as caught:
        parse_ssh(via)
    assert caught.value.code == "via-invalid"


def test_a_link_at_a_temporary_name_is_not_written_through(tmp_path):
    names = set()
    for _ in range(3):
        with replacing(tmp_path / "a") as temporary:
            names.add(temporary.name)
            temporary.write_text("x")
    assert len(names) == 3
    assert not [name for name in names if str(os.getpid()) in name.split(".")]
    shared = [path.name for path in SOURCES if '"/tmp' in path.read_text()]
    assert shared == ["ssh.py"], "only mkdtemp, whose folders are their owner's"


def test_the_page_of_security_names_files_that_are_there():
    root = PACKAGE.parent
    text = (root / "docs/security.md").read_text()
    named = set(re.findall(r"`((?:[\w-]+/)+[\w-]+\.\w+)(?::\w+)?`", text))
    assert len(named) > 10
    assert {
        one for one in named if not any((at / one).is_file() for at in (root, PACKAGE))
    } == set()
    assert "docs/security.md" in (root / "README.md").read_text()
