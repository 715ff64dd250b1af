"""The raw numbers of a board decide the pending gates; a record of something else is refused."""

from dataclasses import replace

import numpy as np
import pytest
from played_board import GATES, KIT, NANO, block, host_report, record

from kdcompile.core.errors import KDError
from kdcompile.gates.from_board import NO_TEST, _digest, judge_board


@pytest.fixture
def device():
    return record("0" * 64)


@pytest.fixture
def judged(device):
    """`judged()`: the report of the record as it is now."""
    return lambda: judge_board(host_report(), KIT, GATES, device, "device.json")[0]


def verdicts(report):
    return {gate.name: gate.verdict for gate in report.gates}


def test_measurements_are_added_with_their_origin(judged):
    report = judged()
    device = [m for m in report.measurements if m.evidence == "device"]
    assert [m.evidence for m in report.measurements] == ["host", *["device"] * len(device)]
    latencies = {(m.name, m.precision): m.value for m in device if m.name.endswith("latency")}
    assert set(latencies) == {
        ("student latency", "int8"), ("student latency", "fp16"), ("teacher latency", "fp16")
    }  # fmt: skip
    assert latencies["teacher latency", "fp16"] == pytest.approx(4.0, rel=0.02)
    assert {"student mae", "student rmse", "speed-up"} <= {m.name for m in device}
    assert report.environment["device"]["power_mode"] == NANO["power_mode"]
    assert report.environment["device"]["chosen"] == "int8"


def test_verdicts_come_from_the_raw_numbers(judged, device):
    int8 = device["candidates"][1]
    int8["predictions"] = [p + 9 for p in int8["predictions"]]
    int8["sqnr_db"], int8["build"]["bytes"] = 3.0, 2_000_000
    device["latency"]["graph"]["int8"] = block(3.9)
    device["gates"] = [
        {"name": n, "verdict": "passed"} for n in ("accuracy", "parity", "speedup", "size_mb")
    ]
    report = judged()
    assert set(verdicts(report).values()) == {"failed", "passed"}
    assert [g.name for g in report.gates if g.verdict == "passed"] == ["size_mb"]
    assert report.exit_code == 3


def test_without_a_test_pack_two_gates_stay_pending(judged, device):
    device["test"], device["teachers"] = None, {}
    del device["latency"]["graph"]["teacher_fp16"]
    for one in device["candidates"]:
        del one["predictions"]
    report = judged()
    assert verdicts(report)["parity@device"] == "passed"
    assert verdicts(report)["accuracy@device"] == verdicts(report)["speedup@device"] == "pending"
    assert report.gates[0].reason == NO_TEST
    assert report.verdict == "passed on host, 2 gates pending on the board"


def test_the_teacher_that_was_not_timed_leaves_the_speed_up_pending(judged, device):
    device["teachers"] = {"fp16": {"why": "the teacher: build-failed: no memory"}}
    report = judged()
    assert verdicts(report)["speedup@device"] == "pending"
    assert "no memory" in report.gates[2].reason


def test_a_board_that_ships_nothing_fails(judged, device):
    device["chosen"] = device["engine"] = None
    device["candidates"] = [{"precision": "fp16", "verdict": "failed", "why": "onnx-refused: Foo"}]
    device["latency"], device["judged_mode"] = {}, ""
    report = judged()
    assert report.exit_code == 3
    assert "onnx-refused: Foo" in report.gates[1].reason
    assert verdicts(report)["parity@device"] == "failed"


def test_an_engine_that_gave_no_number_fails_accuracy(judged, device):
    del device["candidates"][1]["predictions"]
    assert verdicts(judged())["accuracy@device"] == "failed"


def test_a_bundle_that_its_board_decided_is_left_alone(device):
    report = host_report()
    decided = replace(report, gates=tuple(g for g in report.gates if g.verdict != "pending"))
    with pytest.raises(KDError) as caught:
        judge_board(decided, KIT, GATES, device, "device.json")
    assert caught.value.code == "merge-mismatch"
    assert "without --via" in caught.value.fix


@pytest.mark.parametrize("lacking", ["engine", "build", "sqnr_db", "max_rel_error"])
def test_half_a_candidate_judges_nothing(judged, device, lacking):
    device["chosen"] = device["engine"] = None
    for one in device["candidates"]:
        del one[lacking]
    assert verdicts(judged())["parity@device"] == "failed"


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda d: d.update(worker="3" * 64), "agent.pyz"),
        (lambda d: d["environment"].update(backend="onnxruntime"), "not TensorRT"),
        (lambda d: d["environment"].update(backend_version="8.6.1"), "TensorRT 8.6.1"),
        (lambda d: d["environment"].update(module="NVIDIA Jetson AGX Orin"), "AGX Orin"),
        (lambda d: d["environment"].update(gpu=None), "compute capability None"),
        (lambda d: d.update(shape=[1, 1, 8, 8]), "it timed [1, 1, 8, 8]"),
        (lambda d: d["test"].update(digest="3" * 64), "other images"),
    ],
)
def test_a_record_of_something_else_is_refused(judged, device, spoil, part):
    spoil(device)
    with pytest.raises(KDError) as caught:
        judged()
    assert caught.value.code == "merge-mismatch"
    assert part in caught.value.message
    assert caught.value.fix


HOSTILE = [
    None, True, -1, 1e308, 10**400, "", "x" * 20_000, [], {}, [[]], {"a": {}}, "../../etc/passwd"
]  # fmt: skip
PLACES = [
    ("format",), ("environment",), ("environment", "backend_version"), ("environment", "module"),
    ("environment", "gpu"), ("environment", "memory_mb"), ("shape",), ("judged_mode",),
    ("latency",), ("latency", "graph"), ("latency", "graph", "int8", "blocks"),
    ("latency", "graph", "int8", "n"), ("candidates",), ("candidates", 1),
    ("candidates", 1, "engine"), ("candidates", 1, "build"), ("candidates", 1, "build", "bytes"),
    ("candidates", 1, "sqnr_db"), ("candidates", 1, "max_rel_error"),
    ("candidates", 1, "predictions"), ("candidates", 1, "predictions", 0), ("teachers",),
    ("teachers", "fp16", "engine"), ("test",), ("test", "seed"), ("chosen",), ("references",),
    ("why",), ("worker",),
]  # fmt: skip
CODES = ("device-invalid", "device-version", "merge-mismatch")


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(map(str, place)))
def test_hostile_values_end_as_errors_or_verdicts(device, judged, place):
    """No value whatever makes a traceback, and none makes a gate pass that did not."""
    device["candidates"][1]["sqnr_db"] = 3.0
    inner = device
    for key in place[:-1]:
        inner = inner[key]
    refused = 0
    for value in HOSTILE:
        inner[place[-1]] = value
        try:
            report = judged()
        except KDError as error:
            refused += error.code in CODES and bool(error.fix)
        else:
            refused += verdicts(report)["parity@device"] == "failed"
    assert refused == len(HOSTILE)


def gate_of(report, name):
    return next(gate for gate in report.gates if gate.name == f"{name}@device")


def test_where_nothing_ships_the_engine_of_the_highest_sqnr_is_judged(judged, device):
    device["chosen"] = device["engine"] = None
    for one, found in zip(device["candidates"], (0.0, 0.5), strict=True):
        one["sqnr_db"] = found
    number = gate_of(judged(), "parity").measurements[0]
    assert (number.precision, number.value) == ("int8", 0.5)


def test_where_the_closest_engine_fails_a_gate_the_others_keep_their_verdicts(judged, device):
    device["chosen"] = device["engine"] = None
    report = judged()
    assert verdicts(report)["parity@device"] == "failed"
    assert "the board ships no engine: int8 is the fastest" in gate_of(report, "parity").reason
    assert verdicts(report)["accuracy@device"] == verdicts(report)["size_mb"] == "passed"
    device["candidates"][0]["predictions"] = [0.0] * 30
    assert verdicts(judged())["parity@device"] == "passed"


def test_a_verdict_says_of_how_many_images_it_is(device):
    report = host_report()
    for available, scope in ((None, "on 30 test images"), (182, "on 30 of 182 test images")):
        details = {**report.details, "test_photos": available}
        found, _ = judge_board(replace(report, details=details), KIT, GATES, device, "")
        assert scope in gate_of(found, "accuracy").reason


def test_without_a_test_pack_the_seed_is_0(judged, device):
    blocks = np.random.default_rng(0).uniform(1, 2, 40).tolist()
    for times in device["latency"]["graph"].values():
        times["blocks"] = blocks
    found = []
    for seed in (0, 1, None):
        device["test"] = None if seed is None else device["test"] | {"seed": seed}
        found.append([m for m in judged().measurements if m.name == "student latency"])
    assert found[2] == found[0] != found[1]


def test_one_image_is_told_too(device):
    report = host_report()
    rows = report.details["predictions"][:1]
    report = replace(report, details={**report.details, "predictions": rows})
    device["test"]["digest"] = _digest(report)
    for one in device["candidates"]:
        one["predictions"] = one["predictions"][:1]
    found, _ = judge_board(report, KIT, GATES, device, "")
    assert {"student mae", "speed-up"} <= {m.name for m in found.measurements[1:]}


def test_the_typical_shape_is_the_one_that_a_board_times(device):
    kit = {**KIT, "profile": [[1, 1, 16, 24], [1, 1, 32, 48], [1, 1, 64, 96]]}
    assert judge_board(host_report(), kit, GATES, device, "")[0].verdict == "passed"


@pytest.mark.parametrize("timed", ["int8", "teacher_fp16"])
def test_a_speed_of_one_side_is_none(judged, device, timed):
    assert judged().details["target_speed"]
    device["chosen"], device["candidates"] = None, device["candidates"][1:]
    device["latency"]["graph"] = {timed: block(1.0)}
    report = judged()
    assert verdicts(report)["speedup@device"] == "pending"
    assert "the teacher was not timed" in gate_of(report, "speedup").reason
    assert "target_speed" not in report.details
    assert not {"speed-up", "student mae"} & {m.name for m in report.measurements[1:]}


def test_of_predictions_that_are_too_few_no_number_is_told(judged, device):
    device["candidates"][1]["predictions"].pop()
    report = judged()
    accuracy = gate_of(report, "accuracy")
    assert (accuracy.verdict, accuracy.observed) == ("failed", "no number")
    assert "each of 30 images" in accuracy.reason
    assert [m.name for m in report.measurements].count("student mae") == 1  # the host's


def test_the_mode_of_power_is_told_where_the_board_has_one(judged, device):
    device["environment"]["power_mode"] = None
    (number,) = gate_of(judged(), "speedup").measurements
    assert "1x1x32x48, CUDA graph, inputs on the device, alternating, teacher in" in number.mode
    assert number.machine == NANO["module"]


def test_a_bundle_from_before_the_agent_was_one_file_is_merged(device):
    kit = {**KIT, "files": {"worker.py": device["worker"]}}
    assert judge_board(host_report(), kit, GATES, device, "")[0].verdict == "passed"


def test_a_gate_that_is_not_installed_stays_pending_or_as_it_was(device):
    report = host_report()
    other = replace(report.gates[-1], name="loudness")
    found, _ = judge_board(replace(report, gates=(*report.gates, other)), KIT, GATES, device, "")
    assert verdicts(found)["loudness"] == "passed"
    assert "loudness@device" not in verdicts(found)


def test_the_engine_that_ships_is_named_with_its_hash(device):
    _, ships = judge_board(host_report(), KIT, GATES, device, "")
    assert ships == {"e_int8.plan": device["candidates"][1]["build"]["sha256"]}
    device["chosen"] = None
    assert judge_board(host_report(), KIT, GATES, device, "")[1] == {}
