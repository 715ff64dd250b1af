"""The gate `frame_ms`: what was timed, what is predicted, and what a board sends home."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from played_board import GATES, KIT, host_report, record
from resourced import context
from small_build import SmallBuild

from kdcompile import targets
from kdcompile.config.gates import Gates
from kdcompile.core.errors import KDError
from kdcompile.core.measurement import Settings
from kdcompile.core.report import GateResult, overall
from kdcompile.gates import measure
from kdcompile.gates.context import Prediction
from kdcompile.gates.frame import frame_numbers, frame_of, predicted
from kdcompile.gates.frame_ms import FrameGate, frame_ms
from kdcompile.gates.from_board import NO_FRAME, judge_board
from kdcompile.gates.registry import judge
from kdcompile.latency import frame
from kdcompile.latency.frame_times import FrameTimes, PredictedFrame, copies_ms
from kdcompile.latency.settings import Effort
from kdcompile.remote.usage import Absent

PARTS = {"decode": 5.0, "preprocess": 3.0, "inference": 1.5, "postprocess": 0.5}
TIMED = FrameTimes(10.0, 9.5, 10.5, 60, PARTS, "infer.py on 3 image files")
PREDICTED = PredictedFrame(4.0, 1.25, 0.8)


def having(found, evidence="device", target="jetson"):
    return replace(context(evidence=evidence), frame=found, target=targets.load(target))


@pytest.mark.parametrize(
    ("most", "verdict"), [(10.5, "passed"), (10.4, "inconclusive"), (9.5, "inconclusive"),
                          (9.4, "failed")],
)  # fmt: skip
def test_the_whole_interval_decides(most, verdict):
    found = frame_ms(FrameGate(max=most), having(TIMED))
    assert (found.verdict, found.evidence, found.required) == (verdict, "device", True)
    assert found.threshold == f"at most {most:g} ms a frame"
    assert found.observed.startswith("whole frame 10 ms (9.5 to 10.5): decode 5, preprocess 3, ")
    assert found.reason == TIMED.mode
    whole, *parts = found.measurements
    assert (whole.name, whole.value, whole.low, whole.high) == ("whole frame", 10.0, 9.5, 10.5)
    assert {m.name.removeprefix("frame: "): m.value for m in parts} == {
        "decode": 5.0, "preprocess": 3.0, "copy and inference": 1.5, "post-process": 0.5,
    }  # fmt: skip


def test_a_disturbed_machine_decides_nothing():
    found = frame_ms(FrameGate(max=100), having(replace(TIMED, disturbed="other processes")))
    assert (found.verdict, found.reason) == ("inconclusive", "other processes")


@pytest.mark.parametrize("target", ["jetson", "intel-cpu"])
def test_another_machine_decides_nothing(target):
    found = frame_ms(FrameGate(max=100), having(TIMED, "host", target))
    assert (found.verdict, found.required) == ("skipped", False)
    assert "decides no other device" in found.reason


@pytest.mark.parametrize(("most", "verdict"), [(4.0, "skipped"), (3.9, "failed")])
def test_the_predicted_parts_can_fail_it_and_never_pass_it(most, verdict):
    """At least 4 / 1.25 + 0.8 ms are spent, whatever the host's parts take."""
    made = having(PREDICTED, "host")
    found = frame_ms(FrameGate(max=most), made)
    assert (found.verdict, found.evidence) == (verdict, "predicted")
    assert "not predicted: decode, preprocess, post-process" in found.reason
    assert ("the device decides" in found.reason) == (verdict == "skipped")
    gates = Gates.model_construct(frame_ms=FrameGate(max=most))
    results = {r.name: r for r in judge(gates, made)}
    assert results["frame_ms@device"].verdict == "pending"
    assert "--images" in results["frame_ms@device"].reason
    # skipped here it does not stand in the way of what is pending on the board
    passed = replace(found, name="accuracy", verdict="passed", evidence="host")
    outcome = overall([passed, *results.values()])
    assert outcome[1] == (3 if verdict == "failed" else 0)
    assert all(m.evidence == "predicted" for m in frame_numbers(made))
    assert "whole frame" not in {m.name for m in frame_numbers(made)}


def test_of_a_host_with_a_memory_of_its_own_the_copies_are_not_predicted():
    found = PredictedFrame(4.0, 1.25, None)
    assert found.low == pytest.approx(3.2)
    assert found.missing == ("copy", "decode", "preprocess", "post-process")
    assert copies_ms(1_000_000, 68.0) == pytest.approx(8e6 / 68e9 * 1e3)


@pytest.mark.parametrize("target", ["h100", "intel-cpu"])
def test_a_device_that_is_not_here_is_still_to_time_it(target):
    gates = Gates.model_construct(frame_ms=FrameGate(max=5))
    results = {r.name: r.verdict for r in judge(gates, having(TIMED, "host", target))}
    assert results == {"frame_ms": "skipped", "frame_ms@device": "pending"}


def test_named_tensors_have_no_frame_and_a_board_at_hand_times_it(monkeypatch):
    gates, asked = Gates.model_construct(frame_ms=FrameGate(max=5)), []
    monkeypatch.setattr("kdcompile.gates.frame._shipped", lambda *_: "the sample")
    monkeypatch.setattr("kdcompile.gates.frame.pictures_of", lambda photos: photos)
    monkeypatch.setattr(
        frame, "measure_frame", lambda _, photos, via, *__: asked.append(via) or TIMED
    )

    def found(board, inputs=None):
        export = SimpleNamespace(inputs=inputs)
        spec = SimpleNamespace(gates=gates, export=export, seed=0)
        step = SimpleNamespace(spec=spec, board=board)
        return frame_of(step, targets.load("jetson"), (), None, None)

    assert "named tensors" in found(None, {"a": None}).reason
    assert "no latency estimate" in found(None).reason
    played = SimpleNamespace(evidence="host", via="python")
    assert "no latency estimate" in found(played).reason, "no Jetson plays one"
    assert found(SimpleNamespace(evidence="device", via="ssh://board")) == TIMED
    assert asked == ["ssh://board"]


@pytest.mark.parametrize(("preprocess", "bytes_of_a_pixel"), [("host", 4), ("in-graph", 1)])
def test_the_copies_predicted_are_of_the_usual_size(preprocess, bytes_of_a_pixel):
    profile = [[1, 3, side, side] for side in (8, 16, 32)]
    export = SimpleNamespace(profile=profile, preprocess=preprocess)
    teacher = SimpleNamespace(json={"teacher.json": {"output": [1, 1, 2, 2]}}.get)
    step = SimpleNamespace(spec=SimpleNamespace(export=export), inputs={"teacher": teacher})
    prediction = Prediction(5.0, 4.0, 1.25, True, (1.0, 1.5))
    found = predicted(step, targets.load("jetson"), prediction)
    given, made = 3 * 16 * 16 * bytes_of_a_pixel / 4, 2 * 2
    assert found == PredictedFrame(4.0, 1.25, copies_ms(given + made, 102.0))
    assert predicted(step, targets.load("h100"), prediction).copies is None
    none = predicted(step, targets.load("jetson"), None)
    assert "no latency estimate" in none.reason


@pytest.mark.parametrize(
    ("found", "asked", "words"),
    [
        (Absent("no image here"), FrameGate(max=5), "no image here"),
        (None, FrameGate(max=5), "no whole frame was timed"),
        (TIMED, FrameGate(max=5, evidence="predicted"), "is not predicted here"),
    ],
)
def test_what_was_not_timed_is_skipped_and_required_where_this_is_the_target(found, asked, words):
    result = frame_ms(asked, having(found, "host", "cpu"))
    assert (result.verdict, result.required) == ("skipped", True)
    assert words in result.reason
    assert overall([result])[1] == 5


# ---- a board's record


def judged(device, most=20.0):
    gates = GATES | Gates.model_validate({"frame_ms": {"max": most}}).model_dump(
        mode="json", include={"frame_ms"}
    )
    host = host_report()
    waiting = GateResult("frame_ms@device", "pending", "device", True, "a limit", "not yet", "wait")
    here = GateResult("frame_ms", "skipped", "predicted", False, "a limit", "at least 2 ms", "")
    report, _ = judge_board(
        replace(host, gates=(*host.gates, here, waiting)), KIT, gates, device, "device.json"
    )
    return report, {gate.name: gate for gate in report.gates}


def with_frame(**more):
    told = {"precision": "int8", "blocks": [18.0 + i / 100 for i in range(20)], "parts": PARTS,
            "n": 100, "images": 3, "sizes": "1024x768 JPEG"}  # fmt: skip
    return record("3" * 64) | {"frame": told | more}


@pytest.mark.parametrize(("most", "verdict"), [(18.2, "passed"), (17.9, "failed")])
def test_it_is_judged_from_the_boards_blocks(most, verdict):
    report, gates = judged(with_frame(), most)
    assert gates["frame_ms@device"].verdict == verdict
    assert gates["frame_ms@device"].evidence == "device"
    assert ".npz files" in gates["frame_ms@device"].reason
    assert "frame_ms" not in gates
    numbers = [m for m in report.measurements if m.name == "whole frame"]
    assert [m.value for m in numbers] == [pytest.approx(18.095)]
    assert numbers[0].mode.startswith("infer.py on 3 image files, 1024x768 JPEG")


def test_a_record_without_frames_leaves_it_pending():
    _, gates = judged(record("3" * 64))
    assert (gates["frame_ms@device"].verdict, gates["frame_ms@device"].reason) == (
        "pending", NO_FRAME,
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [{"blocks": [1.0] * 5}, {"blocks": [0.0] * 20}, {"precision": "fp16"}, {"images": 0},
     {"parts": {"lunch": 3.0}}],
)  # fmt: skip
def test_a_record_of_another_form_is_refused(wrong):
    with pytest.raises(KDError) as caught:
        judged(with_frame(**wrong))
    assert caught.value.code == "device-invalid"


# ---- builds


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(measure, "TIMING", Settings(seconds=0.05))
    monkeypatch.setattr(frame, "EFFORT", Effort(processes=1, blocks=4, seconds=0.5))


def built(tmp_path, target, most, *more):
    sets = (f"gates.frame_ms.max={most}", "gates.speedup.min=1e-6")
    build = SmallBuild(tmp_path, sets=(*sets, *more))
    for stage in ("calibrate", "compile", "verify"):
        build.run(stage, targets.load(target))
    report = build.report()
    return report, {gate["name"]: gate for gate in report["gates"]}


def test_of_a_cpu_here(tmp_path, quick):
    report, gates = built(tmp_path, "cpu", 1e4)
    verdict = gates["frame_ms"]
    assert verdict["evidence"] == "host"
    assert verdict["verdict"] in ("passed", "inconclusive")  # where other work disturbed it
    numbers = {m["name"]: m for m in report["measurements"]}
    assert numbers["whole frame"]["value"] > numbers["frame: decode"]["value"] > 0
    assert "9 image files, 16x16 JPEG" in numbers["whole frame"]["mode"]
    assert "frame_ms@device" not in gates


IN_GRAPH = 'export.preprocess="in-graph"'


def test_of_a_network_that_normalises_the_sample_gives_it_pixels(tmp_path, quick):
    report, gates = built(tmp_path, "cpu", 1e4, IN_GRAPH)
    assert gates["frame_ms"]["verdict"] in ("passed", "inconclusive"), gates["frame_ms"]["reason"]
    assert any(m["name"] == "whole frame" for m in report["measurements"])


def test_the_copies_of_pixels_are_a_quarter(tmp_path, quick):
    copies = []
    for place, more in enumerate(((), (IN_GRAPH,))):
        (tmp_path / str(place)).mkdir()
        report, _ = built(tmp_path / str(place), "jetson", 1e4, *more)
        numbers = {m["name"]: m["value"] for m in report["measurements"]}
        copies.append(numbers["frame: copies at the memory's peak rate"])
    plain, of_pixels = copies
    saved = 3 * (3 * 16 * 16)  # bytes, of an input of 3 x 16 x 16, written and read
    bandwidth = targets.load("jetson").bandwidth_gbs
    assert plain - of_pixels == pytest.approx(2 * saved / (bandwidth * 1e9) * 1e3)


@pytest.mark.parametrize(("code", "is_absent"), [("pillow-missing", True), ("worker-died", False)])
def test_a_sample_that_does_not_run_is_skipped_with_its_reason(
    tmp_path, quick, monkeypatch, code, is_absent
):
    def fail(*values):
        raise KDError(code, "no Pillow there", fix="install it")

    monkeypatch.setattr(frame, "measure_frame", fail)
    if not is_absent:
        with pytest.raises(KDError, match="no Pillow there"):
            built(tmp_path, "cpu", 1e4)
        return
    report, gates = built(tmp_path, "cpu", 1e4)
    assert gates["frame_ms"]["verdict"] == "skipped"
    assert gates["frame_ms"]["reason"] == "no Pillow there; install it"
    assert report["exit_code"] == 5


def test_of_a_device_that_is_not_here(tmp_path, quick):
    report, gates = built(tmp_path, "jetson", 1e4)
    assert (gates["frame_ms"]["verdict"], gates["frame_ms"]["required"]) == ("skipped", False)
    assert gates["frame_ms@device"]["verdict"] == "pending"
    assert report["exit_code"] == 0
    numbers = {m["name"]: m for m in report["measurements"]}
    assert numbers["frame: inference alone"]["evidence"] == "predicted"
    assert "whole frame" not in numbers
