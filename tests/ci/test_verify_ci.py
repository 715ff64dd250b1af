"""`verify --ci` of a spec, of a bundle and of the parity ladder."""

import importlib
import json
from contextlib import contextmanager
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from command_line import CommandLine

from kdcompile import api
from kdcompile.cli import cli
from kdcompile.core.errors import KDError
from kdcompile.core.report import GateResult, Report, overall
from kdcompile.debug import network, show
from kdcompile.debug.tolerance import Tolerance
from kdcompile.debug.variants import Ladder, Step
from kdcompile.tasks.metric import MAE
from kdcompile.tasks.task import find_task

verify = importlib.import_module("kdcompile.cli.verify")  # the package has the command
IMAGE = np.linspace(0, 1, 48, dtype=np.float32).reshape(1, 3, 4, 4)
PASSED = GateResult("accuracy", "passed", "host", True, "t", "o", "why")
FAILED = GateResult("size_mb", "failed", "host", True, "t", "o", "why")
PENDING = GateResult("speedup", "pending", "device", True, "t", "o", "why")


@pytest.fixture
def line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(cli.commands, "verify", verify.verify)
    found = CommandLine(monkeypatch, capsys)
    found.folder = tmp_path
    return found


def report_of(*gates):
    verdict, code = overall(gates)
    return Report("crowd", "jetson", verdict, code, gates, (), {})


@pytest.fixture
def spec(line, monkeypatch):
    """`spec(gates)`: the plan of any spec, whose gates these are."""

    def give(*gates):
        values = report_of(*gates).to_json()
        made = SimpleNamespace(
            spec=SimpleNamespace(name="crowd", gates=SimpleNamespace(previous=None)),
            make=lambda stage: SimpleNamespace(json=lambda name: values),
        )
        monkeypatch.setattr(api, "planned", lambda *_: made)
        return line

    return give


@pytest.fixture
def bundle(line, monkeypatch):
    """`bundle(gates, factor)`: a bundle whose network multiplies the image; 1.0 is right."""
    folder = line.folder / "crowd-jetson"
    (folder / "kit").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "kit" / "gates.json").write_text(json.dumps({"parity": {"min_sqnr_db": 20.0}}))

    def give(*gates, factor=1.0):
        if factor is not None:
            np.savez(folder / "kit" / "reference.npz", input_0=IMAGE, output_fp32_0=IMAGE)
        report = report_of(*gates)
        about = {"files": {"a": 1}, "precision": "fp32", "verdict": report.verdict}
        about["exit_code"] = report.exit_code

        @contextmanager
        def reading(name):
            yield (folder / name).read_bytes()

        made = SimpleNamespace(
            folder=folder, manifest=about, engine=None, report=lambda: report, reading=reading
        )

        @contextmanager
        def opened(*_, **__):
            yield lambda image: factor * image

        monkeypatch.setattr(verify, "open_trusted", lambda *_: (made, "not signed"))
        monkeypatch.setattr(network, "open_network", opened)
        return line

    return give


def read(line, folder="kdcompile-ci"):
    """The tests and their results, and the record; both say the same exit code."""
    root = ElementTree.parse(line.folder / folder / "junit.xml").getroot()
    found = {
        case.get("name"): next((c.tag for c in case if c.tag != "system-out"), None)
        for case in root.iter("testcase")
    }
    record = json.loads((line.folder / folder / "outcomes.json").read_text())
    assert record["title"] == root.get("name")
    assert ({"failure", "error"} & set(found.values()) != set()) == (record["exit_code"] != 0)
    return found, record


def test_the_gates_of_a_spec(spec):
    line = spec(PASSED, FAILED)
    assert line("verify", "crowd", "--target", "jetson", "--ci")[0] == 3
    found, record = read(line)
    assert found == {"accuracy": None, "size_mb": "failure"}
    assert (record["exit_code"], record["verdict"]) == (3, "failed: size_mb")
    assert record["title"] == "kdcompile verify: crowd for jetson"


@pytest.mark.parametrize(
    ("words", "code", "tag"), [((), 0, "skipped"), (("--require", "device"), 5, "error")]
)
def test_a_gate_that_waits_for_the_board(spec, bundle, words, code, tag):
    for line, named in ((spec(PASSED, PENDING), ()), (bundle(PASSED, PENDING), ("crowd-jetson",))):
        assert line("verify", *named, *words, "--ci")[0] == code
        found, record = read(line)
        assert (found["speedup"], record["exit_code"]) == (tag, code)


@pytest.mark.parametrize(
    ("gates", "factor", "code", "outputs"),
    [
        ((PASSED,), 1.0, 0, None),
        ((PASSED,), 1.5, 3, "failure"),
        ((PASSED,), None, 0, "skipped"),  # no reference outputs
        ((PASSED, FAILED), 1.0, 3, None),
        ((PENDING,), 1.0, 5, None),  # nothing was decided when it was built
    ],
)
def test_a_bundle(bundle, gates, factor, code, outputs):
    line = bundle(*gates, factor=factor)
    assert line("verify", "crowd-jetson", "--ci")[0] == code
    found, record = read(line)
    assert (found["bundle files"], found["bundle outputs"]) == (None, outputs)
    assert record["exit_code"] == code
    assert {gate.name for gate in gates} <= set(found)
    assert record["title"] == "kdcompile verify: crowd-jetson"
    assert line("verify", "crowd-jetson", "--json")[0] == code
    assert json.loads(line.out)["exit_code"] == code


def test_what_is_of_a_spec_is_refused_for_a_bundle(bundle):
    line = bundle(PASSED)
    for words in (("--target", "jetson"), ("--set", "seed=1"), ("--baseline", "old")):
        code, err = line("verify", "crowd-jetson", *words, "--ci")
        assert (code, "spec" in err) == (2, True)
        assert read(line)[1]["exit_code"] == 2


def step(name, verdict, sqnr=None, reason=""):
    return Step(name, "onnx", verdict, "", "int8", sqnr, 0.9, 0.1, 0.01, None, reason)


@pytest.mark.parametrize(
    ("steps", "found", "code"),
    [
        ([step("int8", "passed", 40.0), step("engine", "absent", reason="no place")],
         {"int8": None, "engine": "skipped"}, 0),
        ([step("int8", "failed", 4.0, "4.0 dB, under the gate's 20")], {"int8": "failure"}, 3),
        ([step("engine", "absent", reason="no place")],
         {"engine": "skipped", "verdict": "error"}, 5),
    ],
)  # fmt: skip
def test_the_ladder(line, monkeypatch, steps, found, code):
    tolerance = Tolerance(0.05, "of this test", 9)
    ladder = Ladder([], [], find_task("counting"), MAE, None, tolerance, 20.0, "no images")

    @contextmanager
    def opened(*_):
        yield ladder

    monkeypatch.setattr(api, "open_ladder", opened)
    monkeypatch.setattr(show, "climb", lambda _: [step("onnx", "reference"), *steps])
    assert line("verify", "--parity", "--ci", "--ci-folder", "out")[0] == code
    made, record = read(line, "out")
    assert made == found
    assert record["exit_code"] == code


def test_annotations_the_summary_and_the_json_document(spec, monkeypatch):
    line = spec(FAILED)
    page = line.folder / "page.md"
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    code, err = line("verify", "--ci", "--json")
    assert json.loads(line.out)["exit_code"] == code == 3
    assert "::error title=kdcompile%3A size_mb%3A failed::" in err
    assert page.read_text().startswith("### ❌ kdcompile verify: ")


def test_an_error_takes_the_place_of_the_old_verdict(spec, monkeypatch):
    line = spec(PASSED)
    assert line("verify", "--ci")[0] == 0

    def broken(*_):
        raise KDError("bundle-corrupt", "a hash is another", "here", "build it again")

    monkeypatch.setattr(api, "planned", broken)
    assert line("verify", "--ci")[0] == 1
    assert read(line)[0] == {line.folder.name: "error"}
    assert line("verify", "--parity", "--require", "device", "--ci")[0] == 2
    assert read(line)[1]["exit_code"] == 2
    assert line("verify", "--no-such-option", "--ci")[0] == 2
    assert read(line)[0] == {"verify": "error"}
