"""`kdcompile baseline`: kept by device class, with who and why in their history."""

import onnx
import pytest
from bench_line import UNIT_MS, BenchLine
from command_line import refusal

from kdcompile.latency.baseline import read_baseline


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


def test_update_in_one_of_several_classes_takes_its_mode_and_shape(line, monkeypatch):
    """The class is asked of the device, and each file is read once."""
    model = onnx.load(line.folder / "net.onnx")
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"s{axis}"
    onnx.save(model, line.folder / "net.onnx")
    for cpu, copies, shape in (("Other", "none", "1x3x16x16"), ("played", "both", "1x3x32x32")):
        line.scene.facts = lambda process, cpu=cpu: {"cpu": cpu}
        words = ("--shape", shape, "--mode", f"copies={copies}")
        assert line("baseline", "init", "net.onnx", *words)[0] == 0
    read = []
    monkeypatch.setattr(
        "kdcompile.latency.keep_baseline.read_baseline",
        lambda file: read.append(file) or read_baseline(file),
    )
    assert line("baseline", "update", "net.onnx", "--why", "again")[0] == 0
    mode = _read(line).mode
    assert (mode["copies"], mode["input"]) == ("both", "1x3x32x32 float32")
    assert len(_read(line).history) == 2
    assert len(_read(line, ".kdcompile-baselines/other/net.json").history) == 1
    assert sorted(file.parent.name for file in read) == ["other", "played"]
    line.scene.facts = lambda process: {"cpu": "Third"}
    places = len(line.scene.places)
    found = line("baseline", "update", "net.onnx", "--why", "again")
    refusal(found, "baseline-class", "kept for other, played", "--device other")
    assert len(line.scene.places) == places + 1  # it was asked, and nothing measured
    assert line("baseline", "update", "net.onnx", "--why", "x", "--device", "other")[0] == 0
    assert _read(line, ".kdcompile-baselines/other/net.json").mode["copies"] == "none"


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


def _on(monkeypatch, day):
    monkeypatch.setattr(
        "kdcompile.latency.sampler._now", lambda: f"2026-03-{day:02}T08:00:00+00:00"
    )


def test_another_occasion_joins_the_baseline(kept, monkeypatch):
    _on(monkeypatch, 2)
    code, found = kept.json("baseline", "update", "net.onnx", "--add", "--why", "another day")
    made = _read(kept)
    assert (code, found["samples"]["runs"], len(made.samples.runs)) == (0, 6, 6)
    assert made.samples.runs[-1].started.startswith("2026-03-02")
    assert [change["why"] for change in made.history] == ["first baseline", "another day"]
    assert kept("bench", "net.onnx", "--baseline", FILE)[0] == 0


def test_another_artifact_does_not_join(kept):
    before = (kept.folder / FILE).read_bytes()
    kept.network("net", 0.8, seed=1)
    words = ("baseline", "update", "net.onnx", "--why", "new")
    refusal(kept(*words, "--add"), "baseline-other", "not the artifact", "leave --add out")
    assert (kept.folder / FILE).read_bytes() == before
    assert kept(*words)[0] == 0


def test_other_conditions_do_not_join(kept):
    before = (kept.folder / FILE).read_bytes()
    kept.scene.facts = lambda process: {"cpu": "played", "governor": "powersave"}
    words = ("baseline", "update", "net.onnx", "--add", "--why", "x")
    refusal(kept(*words), "baseline-foreign", "governor", "leave --add out")
    assert (kept.folder / FILE).read_bytes() == before
    assert kept(*(word for word in words if word != "--add"))[0] == 0


def test_on_another_day_nothing_goes_on_in_vain(kept, monkeypatch):
    kept.network("new", 1.0, seed=1)
    (kept.folder / "net.onnx").unlink()  # its samples stand for it
    _on(monkeypatch, 5)
    words = ("bench", "new.onnx", "--baseline", FILE, "--margin", "1%")
    code, found = kept.json(*words, "--until-decided")
    assert (code, found["decision"]) == (5, "inconclusive")
    assert len(found["candidate"]["started"]) == 1
    assert "baseline update --add" in found["reason"]
