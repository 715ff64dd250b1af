"""A name is text wherever it is shown: no command, no markup, no line of its own, no code."""

import ast
import importlib.util
import logging
import re
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import CommandLine
from hostile import Active, hostile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table

import kdcompile.bundle
from kdcompile.bundle.card import write_card
from kdcompile.bundle.render import markdown
from kdcompile.bundle.report.page import html
from kdcompile.bundle.samples import Tensor, fill
from kdcompile.bundle.text import text_summary
from kdcompile.ci import markdown as summary
from kdcompile.ci.junit import junit
from kdcompile.ci.metrics import metrics
from kdcompile.ci.outcome import outcomes_of_report
from kdcompile.ci.stream import annotations
from kdcompile.cli.options import with_previous
from kdcompile.cli.run import _error_line, _line
from kdcompile.cli.terminal import show, show_table, tell
from kdcompile.config.load import parse_set
from kdcompile.core import escape, logs
from kdcompile.core.errors import KDError
from kdcompile.data.recognise import recognise

pytestmark = pytest.mark.usefixtures("drawn")

HOSTILE = [
    "::stop-commands::x", "  ::error::x", "##[stop-commands]x", "##vso[task.complete]", "a\n::add",
    "\x1b[2J\x1b]0;t\x07", "a\u202etxt.exe", "\u2066x\u2069", "a\r\n\r\n# b", "[x](http://x.y)",
    "![x](http://x.y/p)", "<script>x</script>", '"><img src=x onerror=x>', "a|b|c", "`a` *b* __c__",
    "]]>", '"""', "'''+x+'''", '"\n[data]\nroot = "/', "\\", "{{ 7 * 7 }}", "{% x %}", "$x$",
    "a\x00b", "\ud800", "[bold]x[/bold]", "[/]", ":tada:", "@all", "\x85::x", "\u2028::x",
    "%0A::x", "\x7f",
]  # fmt: skip
NAMES = st.sampled_from(HOSTILE) | st.text(
    alphabet="ab :#[]{}<>&\"'`*_|\\/$%@\n\r\t"
    "\x00\x1b\x7f\x85\u2028\u202e\u2066\u200f\ud800\U0001f600",
    min_size=1,
    max_size=12,
)
COMMAND = re.compile(r"\s*::|.*##\w*\[")
BIDI = re.compile(f"[{escape.BIDI}]")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
TEXT = {"text", "text_special", "softbreak", "strong_open", "strong_close", "code_inline"}


def is_safe(text):
    """Whether a terminal and a CI system show these lines and do nothing else."""
    lines = text.split("\n")
    return all(line.isprintable() and not COMMAND.match(line) for line in lines)


@given(NAMES)
@example("::x")
def test_a_line_for_a_terminal(name):
    line = escape.plain(name)
    assert is_safe(line)
    assert "\n" not in line
    assert escape.plain(line) == line
    assert is_safe(escape.plain_lines(f"{name}\n{name}"))


@given(NAMES)
def test_a_value_of_toml(name):
    kept = re.sub("[\ud800-\udfff]", "\ufffd", name)
    text = escape.toml({name: [name, 1.5, True], "b": {"c": name}})
    assert is_safe(text.replace("##", ""))
    assert tomllib.loads(f"a = {text}")["a"] == {kept: [kept, 1.5, True], "b": {"c": kept}}
    folder = re.sub("[\x00/\ud800-\udfff]", "", name)
    (word,) = with_previous((), Path("/x", folder, "bundle"))
    assert Path(parse_set(word)[1]).name == "bundle"


@settings(max_examples=20)
@given(NAMES)
def test_literals_of_python_and_of_c(name):
    assert ast.literal_eval(escape.python(name)) == name
    literal = escape.c_string(name)
    assert is_safe(literal.replace("##", ""))
    inner = re.sub(rb"\\(\d{3})", lambda found: bytes([int(found[1], 8)]), literal[1:-1].encode())
    assert inner.decode() == name.encode(errors="replace").decode()
    config = fill(
        "config.pbtxt.j2", name=name, target=name, platform="x", awaits_engine=False, kind="x",
        inputs=[{"name": name, "type": "x", "dims": "1"}], outputs=[],
    )  # fmt: skip
    assert config.count("\n") == fill(
        "config.pbtxt.j2", name="a", target="a", platform="x", awaits_engine=False, kind="x",
        inputs=[{"name": "a", "type": "x", "dims": "1"}], outputs=[],
    ).count("\n")  # fmt: skip


@given(NAMES)
def test_the_report_for_a_terminal(name):
    assert is_safe(text_summary(hostile(name)))


@settings(max_examples=15)
@given(NAMES)
def test_the_pages_in_markdown(tmp_path_factory, name):
    report = hostile(name)
    folder = tmp_path_factory.mktemp("card")
    write_card(folder, report, ([Tensor(name, "FP32", (1, 3, 4, 4))],) * 2)
    outcomes = outcomes_of_report(report)
    for text in (
        markdown(report),
        (folder / "MODEL_CARD.md").read_text(),
        summary.markdown(outcomes, name),
    ):
        parsed = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
        assert {child.type for one in parsed for child in one.children or ()} <= TEXT
        blocks = {one.type for one in parsed}
        assert not blocks & {"html_block", "blockquote_open", "fence", "hr", "ordered_list_open"}
        assert not [c for c in (BIDI.search(text), CONTROL.search(text)) if c]


def test_the_page_in_html(tmp_path):
    name = '"><img src=x onerror=x>{{ 7 * 7 }}$x^$a\u202eb\x1b[2J'
    step = {"step": 0, "loss": 1.0, "terms": {name: 1.0}, "val_top1": 0.5, "stage": name}
    np.savez(tmp_path / "example_best.npz", pixels=np.zeros((8, 8, 3), np.uint8))
    page = html(hostile(name), tmp_path, [step])
    parser = Active()
    parser.feed(page)
    assert parser.found == []
    assert sum(escape.visible(name) in text for text in parser.texts) > 20
    assert not BIDI.search(page)
    assert not CONTROL.search(page)


@given(NAMES)
def test_what_ci_systems_read(name):
    outcomes = outcomes_of_report(hostile(name), require_device=True)
    document = ElementTree.fromstring(junit(outcomes, name).encode())
    assert not BIDI.search("".join(document.itertext()))
    cases = document.findall("testsuite/testcase")
    assert len(cases) == len(outcomes)
    assert len(document.findall(".//*")) == len(
        ElementTree.fromstring(
            junit(outcomes_of_report(hostile("a"), require_device=True), "a")
        ).findall(".//*")
    )
    (line,) = annotations(outcomes)
    assert line.startswith("::error ")
    assert not re.search("[\r\n]", line)
    assert line.count("::") >= 2
    message = line.split("::", 2)[2]
    decoded = message.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")
    assert name.encode("utf-8", "replace").decode() in decoded
    pair = r'\w+="(?:[^"\\]|\\.)*"'
    for line in metrics(outcomes).split("\n")[:-2]:
        assert re.fullmatch(rf"# TYPE \w+ gauge|\w+\{{{pair}(?:,{pair})*\}} \S+", line)


@given(NAMES)
def test_what_commands_print(name):
    table = Table()
    table.add_column("a")
    table.add_row(escape.plain(name))
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        show({}, False, lambda _: [name, f"a {name}"])
        tell(name)
        logging.getLogger().handlers[:], before = [], logging.getLogger().handlers[:]
        try:
            logs.begin()
            logging.getLogger("kdcompile").warning("%s: %s", name, name)
        finally:
            logging.getLogger().handlers[:] = before
        show_table(table, [name])
    assert all(not COMMAND.match(line) for line in out.getvalue().split("\n"))
    assert not CONTROL.search(out.getvalue())
    assert not BIDI.search(out.getvalue())
    for row in (
        {"photo": name, "count": 1.0, "overlay": name},
        {"photo": name, "class": name, "probability": 0.5},
        {"photo": name, "outputs": {name: [1]}, "file": name},
        {"photo": name, "value": 1.0},
    ):
        line = _line(row)
        assert is_safe(line)
        assert "\n" not in line
    assert "\n" not in _error_line(KDError("x", name, name, name))
    assert is_safe(_error_line(KDError("x", name, name, name)))
    assert len(str(KDError("x", name, name or "x", name or "x")).split("\n")) == 3


PRINTED = {  # by `click.echo`, and no text of anybody's: numbers, hashes, a whole document
    "f'{made.bytes} bytes, {made.share:.1%} of the {made.full_bytes} in fp16'",
    "f\"{'tensor':<40} {'kind':<6} {'bytes':>9} {'error':>8}\"",
    "row.rstrip()", "wrote", "text", "_error_line(found)", "_line(found)", "str(found)",
    "stop.line(*map(str, told[:1]))", "overall(built.gates, require_device=device)[0]",
}  # fmt: skip


def test_every_command_escapes_what_it_prints():
    """A call that is new here uses `plain`, `show` or `echo_text`, or is in the table."""
    found = set()
    for path in (Path(kdcompile.bundle.__file__).parents[1] / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "click.echo" and node.args:
                found.add(ast.unparse(node.args[0]))
    others = {text for text in found if "plain" not in text and not text.startswith(("'", '"'))}
    assert others == PRINTED


@pytest.fixture(scope="module")
def sample():
    source = Path(kdcompile.bundle.__file__).parent / "templates/infer.py"
    spec = importlib.util.spec_from_file_location("_sample", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(name=NAMES)
def test_what_the_sample_prints(sample, name):
    assert is_safe(sample.shown(name))
    about = {"task": "classification", "classes": [name, "b"]}
    told = sample.meaning(np.array([[1.0, 0.0]], np.float32), about)
    assert is_safe(told.replace("\t", " "))


def test_what_a_wrong_command_line_says(monkeypatch, capsys):
    command = CommandLine(monkeypatch, capsys)
    code, text = command("schema", "::stop-commands::x\x1b[2J\n::error::x")
    assert (code, is_safe(text)) == (2, True)
    assert "stop-commands" in text


@pytest.mark.parametrize("name", ['a".json', "'''+x+'''", '"""\n#', "{x}", "\u202e"])
def test_a_data_factory_that_init_writes(name, tmp_path):
    """What it is written of is in it as a text, and no code."""
    file = name.replace("/", "_")
    quoted = name.replace('"', '""')
    (tmp_path / f"{file}.csv").write_text(f'a.png,"{quoted}"\nb.png,b\n')
    found = recognise(tmp_path)
    texts = {
        node.value for node in ast.walk(ast.parse(found.factory)) if isinstance(node, ast.Constant)
    }
    assert {f"{file}.csv", name.strip()} <= texts
    (tmp_path / f"{file}.csv").unlink()
    (tmp_path / f"{file}.json").write_text('{"images": [], "annotations": []}')
    texts = ast.walk(ast.parse(recognise(tmp_path).factory))
    assert f"{file}.json" in {getattr(node, "value", None) for node in texts}
