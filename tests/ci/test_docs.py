"""docs/ci.md says what is so: its commands run, and its tables are those of the code."""

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bench_line import BenchLine
from click import UsageError
from played_board import NANO

from kdcompile.ci.junit import junit
from kdcompile.ci.mark import Settings
from kdcompile.ci.outcome import Outcome, outcome_of_error, outcomes_of_report, overall_of
from kdcompile.ci.report import FILES
from kdcompile.ci.stream import annotations
from kdcompile.cli import cli
from kdcompile.core.errors import KDError, ToolMissingError
from kdcompile.core.report import GateResult, Report
from kdcompile.latency.baseline_store import device_class

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "ci.md").read_text()
FENCED = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.S | re.M)
LINES = [line for kind, text in FENCED if kind == "text" for line in text.splitlines() if line]
INLINE = re.findall(r"`((?:kdcompile|pytest) [\w-]+(?: [^`\n]+)?)`", TEXT)
COMMANDS = [shlex.split(line, comments=True) for line in (*LINES, *INLINE)]
OF_KDCOMPILE = [words[1:] for words in COMMANDS if words[0] == "kdcompile"]
CLASS = device_class({"module": NANO["module"]})


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (ROOT / "docs" / link).exists(), link


def test_the_files_and_the_words_of_the_mark_are_listed():
    first = re.findall(r"^\| `([\w.]+)` \|", TEXT, re.M)
    assert set(first) == set(FILES) | set(Settings.model_fields)


@pytest.mark.parametrize("words", OF_KDCOMPILE, ids=" ".join)
def test_every_command_is_one(words):
    command = cli
    while hasattr(command, "commands") and len(words) > 1:
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, list(words))  # refuses an option that it has not


def test_the_commands_with_ci_are_those_that_are_named():
    having = {n for n, c in cli.commands.items() if any("--ci" in p.opts for p in c.params)}
    sentence = TEXT.partition("What people read of it is written by")[2].partition(":\n")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == having
    shown = {words[0] for words in OF_KDCOMPILE if "--ci" in words}
    assert shown == having


def test_the_class_is_what_baseline_makes_of_a_board(monkeypatch, capsys, tmp_path):
    """A board keeps its baseline and is judged by it, by the commands as they are printed."""
    line = BenchLine(monkeypatch, capsys, tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("student", "student_int8"):
        line.network(f"models/{name}", 1.0)
        line.speeds[name] = line.speeds[f"models/{name}"]
    line.scene.facts = lambda process: {"module": NANO["module"]}
    shown = [words for words in OF_KDCOMPILE if words[0] in ("baseline", "bench", "compare")
             and any((tmp_path / word).is_file() for word in words)]  # fmt: skip
    assert sorted(words[0] for words in shown) == ["baseline", "bench", "compare"]
    for words in sorted(shown, key=lambda words: words[0]):
        assert line(*words)[0] == 0, words
        if "--ci" in words:
            assert sorted(p.name for p in Path("kdcompile-ci").iterdir()) == sorted(FILES)


@pytest.mark.parametrize("file", ["docs/ci.md", "ci/gitlab.yml", "ci/example-workflow.yml"])
def test_no_other_class_is_named(file):
    text = (ROOT / file).read_text()
    named = re.findall(r"\.kdcompile-baselines/([\w-]+)/|tags: \[(.+)\]|linux, (.+)\]", text)
    assert {part for found in named for part in found if part} - {"CLASS"} == {CLASS}


def test_the_snippet_of_the_action_has_its_inputs():
    YAML = pytest.importorskip("ruamel.yaml").YAML  # noqa: N806
    inputs = YAML(typ="safe").load((ROOT / "ci" / "action.yml").read_text())["inputs"]
    (text,) = (text for kind, text in FENCED if kind == "yaml")
    (step,) = YAML(typ="safe").load(text)
    assert set(step["with"]) <= set(inputs)
    for name in re.findall(r"inputs? ((?:`[\w-]+`(?:, | and )?)+)", TEXT):
        assert set(re.findall(r"`([\w-]+)`", name)) <= set(inputs)


# ---- what is red ----


def gates(*verdicts, device=False):
    made = tuple(GateResult(f"gate{v}", v, "host", required, "t", "o", "why")
                 for v, required in verdicts)  # fmt: skip
    return outcomes_of_report(Report("n", "t", "", 0, made, (), {}), require_device=device)


def broken(error):
    return [outcome_of_error(error, "net.onnx", "bench")]


ROWS = {
    "passed": [gates(("passed", True))],
    "failed; latency regressed": [gates(("failed", True))],
    "inconclusive, or skipped though required": [
        gates(("inconclusive", True)), gates(("skipped", True)),
    ],
    "the command broke; its command line is wrong; a tool is absent": [
        broken(KDError("x", "y")), broken(UsageError("no")),
        broken(ToolMissingError("x", "y")),
    ],
    "waits for the board": [gates(("pending", True), ("passed", True))],
    "waits for the board, under `--require device`": [
        gates(("pending", True), ("passed", True), device=True),
    ],
    "optional, and not passed": [
        gates((verdict, False), ("passed", True))
        for verdict in ("failed", "inconclusive", "skipped")
    ],
}  # fmt: skip


def table():
    text = TEXT.partition("## What is red")[2].partition("\n\nJUnit's")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 4 and row[0] not in ("a gate", "---")}


@pytest.mark.parametrize("row", ROWS)
def test_what_is_red(row):
    code, tag, level = table()[row]
    codes = [int(number) for number in re.findall(r"\d", code)]
    assert [overall_of(found)[1] for found in ROWS[row]] == codes * (len(ROWS[row]) // len(codes))
    for found in ROWS[row]:
        first = next(ElementTree.fromstring(junit(found, "t")).iter("testcase"))
        marks = [c.tag for c in first if c.tag != "system-out"]
        assert marks == re.findall(r"`(\w+)`", tag)
        levels = [line.partition(" ")[0].strip(":") for line in annotations(found)]
        assert levels == [word for word in ("error", "warning", "notice") if word in level]


def test_the_table_has_no_other_row():
    assert set(table()) == set(ROWS)


@pytest.mark.parametrize("count", [10, 11])
def test_of_more_than_ten_the_tenth_counts_the_rest(count):
    lines = annotations([Outcome(f"g{i}", "gate", "failed") for i in range(count)])
    assert len(lines) == 10
    assert ("2 more" in lines[-1]) == (count > 10)


# ---- Python ----


def test_the_pytest_file_runs(pytester, artifact, monkeypatch):
    """The two tests as they are printed; a played clock and a played place measure."""
    from bench_samples import made

    from kdcompile.ci import callables

    monkeypatch.setattr(
        callables.Timer, "time",
        lambda self, named: [
            made(runs=1, processes=1, blocks=60, name=n, seed=i, facts=callables.facts(),
                 mode=callables.mode(4)) for i, n in enumerate(named)
        ],
    )  # fmt: skip
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "1")  # whatever runs this very test
    first = next(text for kind, text in FENCED if kind == "python")
    pytester.makepyfile(**{"tests/test_latency": f"new = old = data = None\n{first}"})
    (pytester.path / "dist" / "crowd-cpu").mkdir(parents=True)
    (pytester.path / "net.onnx").rename(pytester.path / "dist" / "crowd-cpu" / "model.onnx")
    artifact.speeds["model.onnx"] = 1.0
    (save,) = (words for words in COMMANDS if words[0] == "pytest" and len(words) > 2)
    plugin = ("-p", "kdcompile.ci.pytest_plugin", "-p", "no:cacheprovider", "--strict-markers")
    result = pytester.runpytest_inprocess(*plugin, *save[1:])
    result.assert_outcomes(skipped=1, passed=1)
    result = pytester.runpytest_inprocess(*plugin, save[-1], "--junitxml=j.xml")
    result.assert_outcomes(passed=2)
    assert (pytester.path / "j.xml").read_text().count('name="kdcompile_latency"') == 2


def test_the_options_of_pytest_are_the_plugins():
    import kdcompile.ci.pytest_plugin as plugin

    known = set(re.findall(r'"(--kdcompile-[\w-]+)"', Path(plugin.__file__).read_text()))
    assert set(re.findall(r"--kdcompile-[\w-]+", TEXT)) <= known


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    code = [text for kind, text in FENCED if kind == "python"][-1]
    exec(code, {})
    assert "cold start" in Path("kdcompile-ci/junit.xml").read_text()
