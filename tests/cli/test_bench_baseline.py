"""`kdcompile baseline`: kept by device class, with who and why in their history."""

import pytest
from bench_line import UNIT_MS, BenchLine
from command_line import refusal

from kdcompile.bench.baseline import read_baseline


@pytest.fixture
def line(monkeypatch, capsys, tmp_path):
    config = tmp_path / "gitconfig"
    config.write_text("[user]\n name = Ann\n email = ann@x.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    made = BenchLine(monkeypatch, capsys, tmp_path)
    made.network("net", 1.0)
    return made


@pytest.fixture
def kept(line):
    assert line("baseline", "init", "net.onnx")[0] == 0
    return line


FILE = ".kdcompile-baselines/played/net.json"


def _read(line, name=FILE):
    return read_baseline(line.folder / name)


def test_init_keeps_it_by_class_and_name(kept):
    made = _read(kept)
    assert len(made.samples.runs) == 3
    assert made.reference == "../../net.onnx"
    (first,) = made.history
    assert (first["who"], first["why"]) == ("Ann <ann@x.org>", "first baseline")
    assert f"--baseline {FILE}" in kept.out
    code, found = kept.json("bench", "net.onnx", "--baseline", FILE)
    assert (code, found["decision"], found["paired"]) == (0, "equivalent", True)


def test_names_and_folders_of_ones_own(line):
    words = ("baseline", "init", "net.onnx", "crowd", "--folder", "kept", "--device", "rig-3")
    code, made = line.json(*words, "--who", "Bob", "--why", "release 1", "--runs", "4")
    assert (code, made["name"], made["class"]) == (0, "crowd", "rig-3")
    assert made["samples"]["runs"] == 4
    assert made["history"][0]["who"] == "Bob"
    assert _read(line, "kept/rig-3/crowd.json").history[0]["why"] == "release 1"


def test_init_does_not_replace(kept):
    before, places = (kept.folder / FILE).read_bytes(), len(kept.scene.places)
    found = kept("baseline", "init", "net.onnx")
    refusal(found, "baseline-exists", "already", "kdcompile baseline update net.onnx net --why")
    assert len(kept.scene.places) == places + 1  # the device had to be asked
    found = kept("baseline", "init", "net.onnx", "--device", "played")
    refusal(found, "baseline-exists", "already", "kdcompile baseline update")
    assert len(kept.scene.places) == places + 1
    assert (kept.folder / FILE).read_bytes() == before


def test_update_keeps_the_history(kept):
    kept.network("net", 0.8, seed=1)
    code, _ = kept("baseline", "update", "net.onnx", "--why", "a faster head", "--who", "Bob")
    assert code == 0
    assert kept.out.startswith("before: p50 ")
    made = _read(kept)
    first, second = made.history
    assert (second["who"], second["why"]) == ("Bob", "a faster head")
    assert second["before"] == first["after"]
    assert second["after"]["p50_ms"] == pytest.approx(0.8 * UNIT_MS, rel=0.01)
    assert second["sha256"] == made.samples.sha256 != first["sha256"]


def test_update_must_say_why(kept):
    before = (kept.folder / FILE).read_bytes()
    assert kept("baseline", "update", "net.onnx")[0] == 2
    found = kept("baseline", "update", "net.onnx", "--why", "  ")
    refusal(found, "baseline-why", "without a reason", "--why")
    assert (kept.folder / FILE).read_bytes() == before


def test_another_device_does_not_write_into_it(kept):
    before = (kept.folder / FILE).read_bytes()
    kept.scene.facts = lambda process: {"cpu": "Other"}
    found = kept("baseline", "update", "net.onnx", "--why", "new")
    refusal(found, "baseline-class", "kept for played", "--device played")
    assert (kept.folder / FILE).read_bytes() == before
    assert kept("baseline", "init", "net.onnx")[0] == 0
    found = kept.json("baseline", "show", "net")[1]
    assert [one["class"] for one in found["baselines"]] == ["other", "played"]
    assert kept("baseline", "update", "net.onnx", "--why", "new")[0] == 0
    assert len(_read(kept, ".kdcompile-baselines/other/net.json").history) == 2
    assert kept("baseline", "update", "net.onnx", "--why", "x", "--device", "played")[0] == 0
    assert len(_read(kept).history) == 2


def test_update_of_none_and_of_a_broken_one(kept):
    places = len(kept.scene.places)
    found = kept("baseline", "update", "net.onnx", "nett", "--why", "x")
    refusal(found, "baseline-missing", "did you mean 'net'?", "name one of net")
    (kept.folder / FILE).write_text("{")
    found = kept("baseline", "update", "net.onnx", "--why", "x")
    refusal(found, "baseline-broken", "no whole JSON", "version control")
    assert len(kept.scene.places) == places


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("init", "net.onnx", "../x"), "baseline-name"),
        (("init", "net.onnx", "--device", "a/b"), "baseline-name"),
        (("init", "net.onnx", "--runs", "2"), "baseline-runs"),
        (("init", "none.onnx"), "artifact-missing"),
        (("update", "net.onnx", "--why", "x"), "baseline-missing"),
        (("show", "net"), "baseline-missing"),
    ],
)
def test_refused_before_anything_is_measured(line, words, code):
    refusal(line("baseline", *words), code, "", "")
    assert line.scene.places == []
    assert not (line.folder / ".kdcompile-baselines").exists()


def test_a_failure_midway_writes_nothing(kept):
    before = (kept.folder / FILE).read_bytes()
    kept.speeds["net"] = float("nan")
    code, text = kept("baseline", "update", "net.onnx", "--why", "x")
    assert code == 1
    assert "error[" in text
    assert (kept.folder / FILE).read_bytes() == before


def test_show(kept):
    assert kept("baseline", "show")[0] == 0
    assert "Ann <ann@x.org>" in kept.out
    assert "played" in kept.out
    assert kept("baseline", "show", "net")[0] == 0
    for text in ("mode.batch", "first baseline", "Ann <ann@x.org>", "p50", "3 runs", "net.onnx"):
        assert text in kept.out
    code, found = kept.json("baseline", "show", "played/net")
    assert code == 0
    assert found["baselines"][0]["samples"]["p50_ms"] == pytest.approx(UNIT_MS, rel=0.01)
    assert "blocks" in found["baselines"][0]["samples"]


def test_show_of_nothing(line):
    assert line("baseline", "show")[0] == 0
    assert "kdcompile baseline init" in line.out
    assert line.json("baseline", "show") == (0, {"baselines": []})


def test_without_git(line, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("LOGNAME", "login")
    assert line("baseline", "init", "net.onnx")[0] == 0
    assert _read(line).history[0]["who"] == "login"
