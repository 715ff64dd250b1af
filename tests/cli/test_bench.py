"""`kdcompile bench` and `compare`: verdicts, exit codes, and that bad input gives none."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import onnx
import pytest
from bench_line import UNIT_MS, BenchLine
from command_line import refusal
from documents import check_document

from kdcompile.core.errors import KDError
from kdcompile.latency import benchmark
from kdcompile.latency.baseline import read_baseline
from kdcompile.latency.frame_times import FrameTimes
from kdcompile.latency.request import Request
from kdcompile.stats.samples import Block


@pytest.fixture
def line(monkeypatch, capsys, tmp_path):
    return BenchLine(monkeypatch, capsys, tmp_path)


@pytest.fixture
def kept(line):
    """A baseline of `net.onnx` beside it, and a copy that does not find the network."""
    line.network("net", 1.0)
    assert line("bench", "net.onnx", "--save", "b.json")[0] == 0
    (line.folder / "far").mkdir()
    (line.folder / "far" / "b.json").write_bytes((line.folder / "b.json").read_bytes())
    return line


def test_without_a_baseline_only_latencies(line):
    line.network("net", 2.0)
    code, _ = line("bench", "net.onnx")
    assert code == 0
    assert "p50" in line.out
    assert "--save" in line.out
    assert line.out.splitlines()[:2] == [
        "net.onnx",
        "measured on played, an unnamed backend, 1 thread, input 1x3x16x16 float32",
    ]
    code, found = line.json("bench", "net.onnx")
    assert (code, found["decision"], found["exit_code"]) == (0, None, 0)
    assert found["candidate"]["p50_ms"] == pytest.approx(2.0 * UNIT_MS, rel=0.01)
    assert found["candidate"]["environment"]["facts"] == {"cpu": "played"}


def test_a_whole_frame_stands_below_the_latencies_and_in_the_document(line, monkeypatch):
    parts = {"decode": 5.0, "preprocess": 3.0, "inference": 1.5, "postprocess": 0.5}
    timed = FrameTimes(10.0, 9.5, 10.5, 60, parts, "infer.py on 3 image files, 64x48 JPEG")
    asked = []
    monkeypatch.setattr(
        benchmark,
        "_whole_frame",
        lambda path, photos, given, *more: asked.append(photos) or (lambda: timed),
    )
    line.network("net", 1.0)
    assert line("bench", "net.onnx", "--images", "a.jpg", "--images", "b")[0] == 0
    assert [photo.name for photo in asked[0]] == ["a.jpg", "b"]
    assert line.out.splitlines()[-2:] == [
        "whole frame 10 ms (9.5 to 10.5): decode 5, preprocess 3, copy and inference 1.5, "
        "post-process 0.5",
        "the frame is that of infer.py on 3 image files, 64x48 JPEG",
    ]
    _, found = line.json("bench", "net.onnx", "--images", "a.jpg")
    check_document("bench", found)
    assert found["frame"]["parts"] == parts
    assert (found["frame"]["ms"], found["frame"]["low"]) == (10.0, 9.5)
    assert line.json("bench", "net.onnx")[1]["frame"] is None


def test_a_bundle_for_another_device_is_not_told_as_that_devices(line, monkeypatch):
    real = Request.subject
    monkeypatch.setattr(Request, "subject", lambda *a: replace(real(*a), target="jetson"))
    line.network("net", 1.0)
    assert line("bench", "net.onnx")[0] == 0
    assert line.out.splitlines()[2].startswith("this is not jetson: ")


def test_save_makes_three_runs_of_fresh_processes(line):
    line.network("net", 1.0)
    code, _ = line("bench", "net.onnx", "--save", "new/b.json")
    assert code == 0
    assert "saved new/b.json, 3 runs" in line.out
    baseline = read_baseline(line.folder / "new" / "b.json")
    assert len(baseline.samples.runs) == 3
    assert line.processes == 9
    assert baseline.reference == "../net.onnx"
    assert baseline.history[0]["why"] == "kdcompile bench --save"


@pytest.mark.parametrize(
    ("ms", "decision", "code"),
    [(1.0, "equivalent", 0), (1.1, "regressed", 3), (0.9, "improved", 0)],
)
def test_in_turns_with_the_reference(kept, ms, decision, code):
    kept.network("other", ms, seed=1)
    found = kept("bench", "other.onnx", "--baseline", "b.json")
    assert found[0] == code, kept.out
    assert f"{decision}: " in kept.out
    assert "other.onnx against net.onnx" in kept.out
    code_again, judged = kept.json("bench", "other.onnx", "--baseline", "b.json")
    assert (code_again, judged["exit_code"], judged["decision"]) == (code, code, decision)
    assert judged["paired"] is True
    assert judged["reference"]["runs"] == 1
    assert judged["ratios"][0]["value"] == pytest.approx(ms, rel=0.02)


@pytest.mark.parametrize(
    ("ms", "decision", "code"), [(1.0, "equivalent", 0), (1.2, "regressed", 3)]
)
def test_from_samples_alone(kept, ms, decision, code):
    kept.network("net", ms, seed=1)  # the file that the baseline names has changed
    code_, judged = kept.json("bench", "net.onnx", "--baseline", "b.json")
    assert (code_, judged["decision"], judged["paired"]) == (code, decision, False)
    assert any("has changed since" in note for note in judged["notes"])
    assert judged["reference"]["runs"] == 3
    assert kept.processes == 9 + 3


def test_a_reference_that_is_gone_is_told(kept):
    code, _ = kept("bench", "net.onnx", "--baseline", "far/b.json")
    assert code == 0
    assert "is no longer at" in kept.out
    assert "samples alone" in kept.out
    code, found = kept.json("bench", "net.onnx", "--baseline", "far/b.json",
                            "--reference", "net.onnx")  # fmt: skip
    assert (code, found["paired"]) == (0, True)
    assert "both are the same artifact" in found["notes"]


def test_a_reference_that_cannot_be_used(kept):
    given = kept("bench", "net.onnx", "--baseline", "b.json", "--reference", "none.onnx")
    refusal(given, "reference-missing", "no such reference", "leave --reference out")
    kept.network("other", 1.0, seed=1)
    given = kept("bench", "net.onnx", "--baseline", "b.json", "--reference", "other.onnx")
    refusal(given, "reference-differs", "not the artifact", "leave --reference out")
    (kept.folder / "net.onnx").write_text("no network")
    code, found = kept.json("bench", "other.onnx", "--baseline", "b.json")
    assert (code, found["paired"]) == (0, False)
    assert any("cannot be used" in note for note in found["notes"])


def test_ten_samples_decide_nothing(kept):
    code, found = kept.json("bench", "net.onnx", "--baseline", "b.json", "--samples", "10")
    assert (code, found["decision"]) == (5, "inconclusive")
    assert found["candidate"]["inferences"] == 10
    assert found["more_blocks"] > 0
    assert kept("bench", "net.onnx", "--baseline", "b.json", "--samples", "10")[0] == 5
    assert "to decide: kdcompile bench net.onnx --baseline b.json --until-decided\n" in kept.out


def test_until_decided_goes_on_and_spends_the_level(kept):
    kept.network("other", 1.1, seed=1)
    levels = kept.undecided(2)
    words = ("bench", "other.onnx", "--baseline", "b.json", "--until-decided", "--limit", "3000")
    before = kept.processes
    code, found = kept.json(*words)
    assert (code, found["decision"], found["looks"], found["paired"]) == (3, "regressed", 3, True)
    assert levels == pytest.approx([0.001] * 3)
    assert found["level"] == pytest.approx(0.001)
    assert kept.processes == before + 4 * 3  # looks after 3, 6 and 12 processes
    assert found["candidate"]["runs"] == 1
    levels.clear()
    assert kept(*words)[0] == 3
    assert "3 looks, each at its share of the level" in kept.out


def test_until_decided_ends_at_the_limit(kept):
    levels = kept.undecided(9)
    words = ("bench", "net.onnx", "--baseline", "b.json", "--until-decided")
    start = kept.scene.clock()
    code, _ = kept(*words, "--limit", "10")
    assert code == 5
    assert kept.scene.clock() - start < 15
    assert (
        "to decide: kdcompile bench net.onnx --baseline b.json --until-decided --limit" in kept.out
    )
    assert len(levels) < 5
    levels.clear()
    assert kept.json(*words, "--limit", "1e6")[1]["looks"] == len(levels) <= 5


def test_until_decided_from_samples_takes_more_runs(kept, monkeypatch):
    levels = kept.undecided(2)
    words = ("bench", "net.onnx", "--baseline", "far/b.json", "--until-decided")
    code, found = kept.json(*words)
    assert (code, found["candidate"]["runs"], found["looks"]) == (0, 4, 3)
    assert levels == pytest.approx([0.001] * 3)
    levels.clear()
    kept.undecided(99)
    monkeypatch.setattr("kdcompile.latency.compare.time.monotonic", kept.scene.clock)
    start = kept.scene.clock()
    code, found = kept.json(*words, "--limit", "20", "--seconds", "5")
    assert code == 5
    assert 1 < found["candidate"]["runs"] < 16
    assert kept.scene.clock() - start < 25


@pytest.mark.parametrize("limit", ["0", "-3", "nan"])
def test_a_limit_that_leaves_no_time(kept, limit):
    words = ("bench", "net.onnx", "--baseline", "b.json", "--until-decided")
    found = kept(*words, "--limit", limit)
    refusal(found, "limit-invalid", "no time", "--limit 300")


def _foreign(line):
    baseline = read_baseline(line.folder / "b.json")
    runs = tuple(
        replace(run, environment={"facts": {"cpu": "Other", "driver_version": "535"}, "state": {}})
        for run in baseline.samples.runs
    )
    replace(baseline, samples=replace(baseline.samples, runs=runs)).write(line.folder / "f.json")


def test_another_machine_is_refused_after_one_process(kept):
    _foreign(kept)
    before = len(kept.scene.places)
    block = refusal(
        kept("bench", "net.onnx", "--baseline", "f.json"), "baseline-foreign",
        "cpu: Other -> played; driver_version: 535 -> (absent)",
        "--allow cpu --allow driver_version",
    )  # fmt: skip
    assert "where: f.json" in block
    assert len(kept.scene.places) == before + 1
    assert kept.out == ""


def test_allowed_differences_stay_in_the_report(kept):
    _foreign(kept)
    words = ("bench", "net.onnx", "--baseline", "f.json", "--allow", "cpu")
    refusal(kept(*words), "baseline-foreign", "driver_version", "--allow driver_version")
    words = (*words, "--allow", "driver_version")
    assert kept(*words)[0] == 0
    assert "allowed to differ: cpu: Other -> played" in kept.out
    code, found = kept.json(*words)
    assert code == 0
    assert found["allowed"][0] == {"key": "cpu", "theirs": "Other", "here": "played"}


def test_an_unknown_key_to_allow(kept):
    found = kept("bench", "net.onnx", "--baseline", "b.json", "--allow", "mode.bach")
    refusal(found, "allow-unknown", "did you mean 'mode.batch'?", "mode.batch")


def test_the_mode_of_the_baseline_is_taken_and_another_refused(line):
    line.network("net", 1.0)
    assert line("bench", "net.onnx", "--save", "b.json", "--mode", "copies=both")[0] == 0
    code, found = line.json("bench", "net.onnx", "--baseline", "b.json")
    assert (code, found["candidate"]["mode"]["copies"]) == (0, "both")
    found = line("bench", "net.onnx", "--baseline", "b.json", "--mode", "copies=none")
    refusal(found, "baseline-foreign", "mode.copies: both -> none", "--allow mode.copies")


@pytest.mark.parametrize("margin", ["0.03", "three", "", "-3%", "0%", "100%", "nan%", "3%%"])
def test_a_margin_that_is_no_percentage(kept, margin):
    found = kept("bench", "net.onnx", "--baseline", "b.json", "--margin", margin)
    refusal(found, "margin-invalid", "no percentage", "--margin 3%")
    assert kept("bench", "net.onnx", "--baseline", "b.json", "--margin", "3%")[0] == 0


@pytest.mark.parametrize(
    ("words", "code", "message", "fix"),
    [
        (("--shape", "1,3,4"), "shape-invalid", "no shape", "--shape 1x3x576x768"),
        (("--shape", "1x0x4"), "shape-invalid", "no shape", "--shape 1x3x576x768"),
        (("--mode", "grpah=true"), "mode-invalid", "did you mean 'graph'?", "graph=true"),
        (("--mode", "graph=maybe"), "mode-invalid", "cannot be 'maybe'", "graph=true"),
        (("--mode", "copies"), "mode-invalid", "copies", "copies=none"),
        (("--mode", "graph=true"), "mode-refused", "CUDA graph", "leave the option out"),
        (("--streams", "33"), "mode-refused", "33 streams", "1 to 32 streams"),
        (("--streams", "2", "--samples", "10"), "effort-refused", "in one stream", "one stream"),
        (("--mode", "copies=out,in"), "mode-invalid", "cannot be 'out,in'", "copies=out"),
        (
            ("--processes", "0"),
            "effort-refused",
            "processes must be at least 1 (got 0)",
            "1 or more",
        ),
        (("--seconds", "nan"), "effort-refused", "seconds", "above 0"),
        (("--builds", "5"), "builds-none", "cannot be built", "leave --builds out"),
        (("--save", "s.json", "--runs", "2"), "baseline-runs", "2 measuring runs", "3 or more"),
        (("--save", "b.json"), "baseline-exists", "would be lost", "name another"),
    ],
)
def test_options_that_cannot_be(kept, words, code, message, fix):
    before = len(kept.scene.places)
    refusal(kept("bench", "net.onnx", *words), code, message, fix)
    assert len(kept.scene.places) <= before + 1  # before the measurement
    assert kept.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ("net.onnx", "--until-decided"),
        ("net.onnx", "--reference", "net.onnx"),
        ("net.onnx", "--runs", "5"),
        ("net.onnx", "--allow", "cpu"),
        ("net.onnx", "--baseline", "b.json", "--limit", "30"),
        ("net.onnx", "--baseline", "b.json", "--until-decided", "--samples", "10"),
        ("net.onnx", "--backend", "tensorflow"),
        (),
    ],
)
def test_usage(kept, words):
    assert kept("bench", *words)[0] == 2


def test_no_artifact(line):
    refusal(line("bench", "none.onnx"), "artifact-missing", "no such file", "name an ONNX file")
    (line.folder / "x.pt").write_text("")
    refusal(line("bench", "x.pt"), "artifact-unknown", "x.pt", ".onnx")


def _damage(kept, how):
    file = kept.folder / "b.json"
    text = file.read_text()
    if how == "nan":
        baseline = read_baseline(file)
        run = baseline.samples.runs[0]
        process = replace(run.builds[0].processes[0], blocks=(Block((float("nan"),), 0.0),))
        build = replace(run.builds[0], processes=(process,))
        samples = replace(
            baseline.samples,
            runs=(replace(run, builds=(build,)), *baseline.samples.runs[1:]),
        )
        replace(baseline, samples=samples).write(file)
        return
    file.write_text({
        "cut": text[: len(text) // 2],
        "edited": text.replace('"when": "2', '"when": "3'),
        "no json": "# baseline",
        "empty": "",
        "list": "[]",
        "newer": text.replace('"format": 1', '"format": 2'),
    }[how])  # fmt: skip


@pytest.mark.parametrize(
    ("how", "code"),
    [("cut", "baseline-broken"), ("edited", "baseline-edited"), ("no json", "baseline-broken"),
     ("empty", "baseline-broken"), ("list", "baseline-unknown"), ("newer", "baseline-newer"),
     ("nan", "baseline-samples")],
)  # fmt: skip
def test_a_bad_baseline_gives_no_verdict(kept, how, code):
    _damage(kept, how)
    places = len(kept.scene.places)
    for words in (("bench", "net.onnx", "--baseline", "b.json"), ("compare", "b.json", "net.onnx")):
        found = kept(*words)
        refusal(found, code, "", "--save")
        assert kept.out == ""
    assert len(kept.scene.places) == places  # nothing was measured
    assert kept("bench", "net.onnx", "--save", "NEW.json")[0] == 0  # the fix
    assert kept("bench", "net.onnx", "--baseline", "NEW.json")[0] == 0


def test_no_baseline(kept):
    found = kept("bench", "net.onnx", "--baseline", "none.json")
    refusal(found, "baseline-missing", "no such baseline", "--save none.json")


@pytest.mark.parametrize("ms", [float("nan"), 0.0])
def test_measured_latencies_that_are_none(kept, ms):
    kept.speeds["net"] = ms
    for words in ((), ("--baseline", "b.json"), ("--save", "c.json")):
        code, text = kept("bench", "net.onnx", *words)
        assert code == 1
        assert "error[" in text
        assert "fix:" in text
        assert kept.out == ""
    assert not (kept.folder / "c.json").exists()


def test_an_engine_that_fails_midway(kept):
    def fails(op, process, number):
        if op == "time" and process % 3 == 1 and number == 12:
            return KDError("cuda-error", "an illegal memory access", fix="run it with --debug")
        return None

    kept.scene.fails = fails
    for words in ((), ("--baseline", "b.json"), ("--save", "c.json")):
        found = kept("bench", "net.onnx", *words)
        refusal(found, "bench-failed", "illegal memory access", "")
        assert kept.out == ""
    assert not (kept.folder / "c.json").exists()


def test_disturbed_blocks_are_told(line):
    line.network("net", 1.0)
    line.scene.disturb = lambda number: "the clock fell" if number % 9 == 0 else None
    assert line("bench", "net.onnx")[0] == 0
    assert "blocks were disturbed, left out: the clock fell (" in line.out


def test_compare_two_artifacts_in_turns(line):
    line.network("old", 1.0)
    line.network("new", 1.1, seed=1)
    code, found = line.json("compare", "old.onnx", "new.onnx")
    assert (code, found["decision"], found["paired"]) == (3, "regressed", True)
    assert (found["candidate"]["name"], found["reference"]["name"]) == ("new.onnx", "old.onnx")
    assert line("compare", "new.onnx", "old.onnx")[0] == 0
    assert "improved: " in line.out
    assert line("compare", "old.onnx", "old.onnx", "--until-decided")[0] == 0
    assert line("compare", "old.onnx", "new.onnx", "--allow", "cpu")[0] == 2


def test_compare_baselines_measures_nothing(kept):
    kept.network("other", 1.2, seed=1)
    assert kept("bench", "other.onnx", "--save", "o.json")[0] == 0
    places = len(kept.scene.places)
    code, found = kept.json("compare", "b.json", "o.json")
    assert (code, found["decision"], found["paired"]) == (3, "regressed", False)
    assert "nothing was measured now" in found["notes"]
    assert kept("compare", "b.json", "b.json")[0] == 0
    assert len(kept.scene.places) == places
    assert kept("compare", "b.json", "o.json", "--until-decided")[0] == 2
    _foreign(kept)
    found = kept("compare", "f.json", "b.json")
    refusal(found, "baseline-foreign", "cpu: Other -> played", "--allow cpu")


def test_compare_a_baseline_with_an_artifact(kept):
    kept.network("other", 1.2, seed=1)
    code, found = kept.json("compare", "b.json", "other.onnx")
    assert (code, found["decision"], found["paired"]) == (3, "regressed", False)
    found = kept("compare", "other.onnx", "b.json")
    refusal(found, "compare-order", "B is a baseline", "kdcompile compare b.json other.onnx")


@pytest.mark.parametrize(
    ("words", "code", "tag"),
    [(("slow.onnx", "--baseline", "b.json"), 3, "failure"),
     (("net.onnx", "--baseline", "b.json"), 0, None),
     (("net.onnx", "--baseline", "b.json", "--samples", "10"), 5, "error"),
     (("net.onnx",), 0, "skipped"),
     (("net.onnx", "--baseline", "none.json"), 1, "error")],
)  # fmt: skip
def test_ci_reports_have_the_verdict(kept, words, code, tag):
    kept.network("slow", 1.2, seed=1)
    assert kept("bench", *words, "--ci")[0] == code
    suite = ET.parse(kept.folder / "kdcompile-ci" / "junit.xml").getroot()
    (case,) = suite.iter("testcase")
    assert case.get("name") == words[0]
    marks = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
    assert marks == ([] if tag is None else [tag])
    assert bool(marks) == (tag is not None)
    record = json.loads((kept.folder / "kdcompile-ci" / "outcomes.json").read_text())
    assert record["exit_code"] == code


def test_an_open_shape_is_the_baselines(line):
    model = onnx.load(line.network("net", 1.0))
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"s{axis}"
    onnx.save(model, line.folder / "net.onnx")
    found = line("bench", "net.onnx")
    refusal(found, "shape-unknown", "not known", "--shape")
    assert line("bench", "net.onnx", "--shape", "1x3x32x32", "--save", "b.json")[0] == 0
    code, found = line.json("bench", "net.onnx", "--baseline", "b.json")
    assert (code, found["candidate"]["mode"]["input"]) == (0, "1x3x32x32 float32")
    found = line("bench", "net.onnx", "--shape", "1x3x8x8", "--baseline", "b.json")
    refusal(found, "baseline-foreign", "mode.input: 1x3x32x32", "--allow mode.input")
