"""Engines at a place: built once, built again when what they depend on changes, timed in turns."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from near_place import Near, NearGpu
from onnx import numpy_helper
from onnx_graphs import chain, images, table_of

from kdcompile import targets
from kdcompile.backends import engine
from kdcompile.backends.onnxruntime_ import open_session
from kdcompile.calib.qdq import insert_qdq
from kdcompile.config.spec import Compile
from kdcompile.core.errors import KDError
from kdcompile.core.files import file_sha256
from kdcompile.remote.agent.system import platform_name
from kdcompile.remote.agent.worker import Worker

SHAPES = ([1, 3, 16, 16],) * 3
TARGET = targets.load("h100").with_backend("8.6.1")


@pytest.fixture
def near(tmp_path):
    return NearGpu("8.6.1", tmp_path / "there")


@pytest.fixture
def student(tmp_path):
    onnx.save(chain(2), tmp_path / "student.onnx")
    return tmp_path / "student.onnx"


def build(place, board, path, precision="fp16", settings=None, shapes=SHAPES):
    return engine.build(place, board, path, precision, settings or Compile(), shapes)


@pytest.fixture
def taken(near, student, tmp_path):
    """An engine of this machine with its record."""
    with near.open() as place:
        built = build(place, near.board(TARGET), student)
        engine.bring(place, built, tmp_path / "model.engine")
    return tmp_path / "model.engine"


def test_a_second_build_finds_the_engine(near, student):
    board = near.board(TARGET)
    with near.open() as place:
        first = build(place, board, student)
    with near.open() as place:
        second = build(place, board, student)
        assert place.counts["build"] == 1
    assert second == first
    assert first.about["precision"] == "fp16"
    assert Path(first.there).name.startswith("student_fp16-")


def _another_network(tmp_path):
    path = tmp_path / "other.onnx"
    onnx.save(chain(3), path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp32"},
        {"settings": Compile(workspace_mb=64)},
        {"settings": Compile(optimization_level=5)},
        {"shapes": ([1, 3, 16, 16], [1, 3, 16, 16], [1, 3, 16, 24])},
        {"path": _another_network},
        {"facts": {"power_mode": "15W"}},
        {"facts": {"backend_version": "8.6.2"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_an_engine_depends_on_builds_it_again(near, student, tmp_path, change):
    board = near.board(TARGET)
    path = change.pop("path", lambda _: student)(tmp_path)
    other = replace(board, facts={**board.facts, **change.pop("facts", {})})
    with near.open() as place:
        first = build(place, board, student)
        second = build(place, other, path, **change)
        assert place.counts["build"] == 2
    assert first.there != second.there


def test_asymmetric_pairs_are_refused(near, tmp_path):
    model = insert_qdq(chain(2), table_of(chain(2)))
    for tensor in model.graph.initializer:
        if tensor.name in {
            node.input[2] for node in model.graph.node if "Quantize" in node.op_type
        }:
            tensor.CopyFrom(numpy_helper.from_array(np.int8(3), tensor.name))
    onnx.save(model, tmp_path / "student_int8.onnx")
    with near.open() as place, pytest.raises(KDError) as error:
        build(place, near.board(TARGET), tmp_path / "student_int8.onnx", "int8")
    assert (error.value.code, error.value.where) == ("qdq-asymmetric", "here")
    assert "zero point is not 0" in error.value.message
    assert "symmetric" in error.value.fix
    assert not list(Path(near.work).glob("student_*"))


def test_the_settings_reach_the_worker(near, student):
    settings = Compile(optimization_level=2, deterministic=True)
    with near.open() as place:
        built = build(place, near.board(TARGET), student, settings=settings)
    flags = [call[1] for call in near.scenes[0].calls if call[0] == "set_flag"]
    assert "FP16" in flags
    assert built.about["deterministic"] == "best-effort"
    assert Path(built.timing_cache).is_file()


@pytest.mark.parametrize("harm", ["truncate", "flip", "no record", "cut off"])
def test_a_harmed_engine_there_is_built_again(near, student, harm):
    board = near.board(TARGET)
    with near.open() as place:
        there = Path(build(place, board, student).there)
        whole = there.read_bytes()
        if harm == "no record":
            there.with_name(there.name + ".json").unlink()
        elif harm == "cut off":  # the record is written first
            there.unlink()
        else:
            there.write_bytes(whole[:99] if harm == "truncate" else b"\0" + whole[1:])
        build(place, board, student)
        assert place.counts["build"] == 2
    assert there.read_bytes() == whole


def test_an_engine_of_this_machine_runs_there(near, taken, student):
    with near.open() as place:
        assert engine.take(place, taken, "student") == "fp16"
        run = engine.runner(place, near.board(TARGET), "student")
        found = run(images(1)[0])
    np.testing.assert_allclose(found, open_session(student)(images(1)[0]), rtol=1e-3, atol=1e-3)
    assert (run.name, run.version) == ("tensorrt", "8.6.1")


def test_two_places_in_one_folder_do_not_load_each_others_engine(near, taken, tmp_path):
    """As when two commands run on one board, each with an engine of its own."""
    onnx.save(chain(3), tmp_path / "b.onnx")
    with near.open() as one, near.open() as two:
        other = build(two, near.board(TARGET), tmp_path / "b.onnx")
        engine.bring(two, other, tmp_path / "other.engine")
        engine.take(one, taken, "main")
        engine.take(two, tmp_path / "other.engine", "main")
        outputs = [place.run({"image": images(1)[0]}, "main")["out"] for place in (one, two)]
    for path, output in zip(("student.onnx", "b.onnx"), outputs, strict=True):
        expected = open_session(tmp_path / path)(images(1)[0])
        np.testing.assert_allclose(output, expected, rtol=1e-3, atol=1e-3)


def _rewrite(path, blob=None, **values):
    """Change the engine, and what is written beside it so that the two agree."""
    if blob is not None:
        path.write_bytes(blob)
        values |= {"sha256": file_sha256(path), "bytes": len(blob)}
    side = path.with_name(path.name + ".json")
    side.write_text(json.dumps({**json.loads(side.read_text()), **values}))


REFUSED = {
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:99]), "engine-damaged", "truncated: 99 of "
    ),
    "flipped": (
        lambda path: path.write_bytes(b"\0" + path.read_bytes()[1:]), "engine-damaged", "SHA-256"
    ),
    "another version": (
        lambda path: _rewrite(path, tensorrt="10.3.0"),
        "engine-mismatch", "built by tensorrt 10.3.0 for sm_90",
    ),
    "another GPU": (
        lambda path: _rewrite(path, compute_capability="8.7"),
        "engine-mismatch", f"for sm_87 on {platform_name()}; here tensorrt 8.6.1 for sm_90",
    ),
    "another version inside": (
        lambda path: _rewrite(path, path.read_bytes()[:24] + b"\12\3\0" + path.read_bytes()[27:]),
        "engine-mismatch", "plan of TensorRT 10.3.0; here 8.6.1",
    ),
    "not an engine": (
        lambda path: _rewrite(path, b"PK" + bytes(60)), "engine-damaged", "is no TensorRT plan"
    ),
    "a record of nothing": (
        lambda path: path.with_name(path.name + ".json").write_text("[]"),
        "engine-unknown", "model.engine.json does not say what built model.engine",
    ),
    "no record": (
        lambda path: path.with_name(path.name + ".json").unlink(),
        "engine-unknown", "model.engine.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_preflight_refuses(near, taken, case):
    harm, code, message = REFUSED[case]
    harm(taken)
    with near.open() as place:
        with pytest.raises(KDError) as error:
            engine.take(place, taken, "main")
        assert error.value.code == code
        assert message in error.value.message
        assert error.value.fix
        with pytest.raises(KDError, match="no network is loaded"):
            place.run({"image": images(1)[0]}, "main")


class Recorder:
    """A place that times nothing: `order` has the networks as they were asked for."""

    def __init__(self, ms=None):
        self.order, self.asked, self.ms = [], [], ms

    def inputs(self, arrays):
        self.sent = arrays
        return "there"

    def call(self, op, **values):
        self.order.append(values["name"])
        self.asked.append((op, values))
        ms = self.ms or float(len(self.order))
        return {"device": {"p50_ms": ms}, "wall": {"p50_ms": 99.0}}


def test_turns_rotate_and_neighbours_stand_together():
    place, image = Recorder(), images(1)[0]
    found = engine.in_turns(place, "abc", image, mode="graph", turns=4, iterations=7, warmup=2)
    assert "".join(place.order) == "abc" + "bca" + "cab" + "abc"
    assert {name: list(times) for name, times in found.items()} == {
        "a": [1, 6, 8, 10], "b": [2, 4, 9, 11], "c": [3, 5, 7, 12],
    }  # fmt: skip
    assert all(
        (op, v["iterations"], v["warmup"], v["mode"], v["inputs"])
        == ("time", 7, 2, "graph", "there")
        for op, v in place.asked
    )
    np.testing.assert_array_equal(place.sent["image"], image)


@pytest.mark.parametrize(
    ("ms", "pace"),
    [
        (1.0, (15, 20, 10)),
        (100.0, (15, 3, 1)),  # fewer inferences a sample
        (2000.0, (7, 1, 1)),  # then fewer samples
        (10000.0, (6, 1, 1)),  # and no fewer than an interval needs
    ],
)
def test_the_pace_is_one_that_the_device_keeps(ms, pace):
    place = Recorder(ms)
    found = engine.pace(place, "ab", images(1)[0], mode="device")
    assert (found.turns, found.iterations, found.warmup) == pace
    assert place.order == ["a", "b"]


@pytest.mark.parametrize(
    ("mode", "device", "wall", "end_to_end", "expected"),
    [
        ("device", 1, 2, None, 1),
        ("device", None, 2, None, 2),  # a CPU has no device clock
        ("graph", 1, 2, 3, 1),
        ("end_to_end", 1, 2, 3, 3),
    ],
)
def test_the_median_is_of_the_devices_clock(mode, device, wall, end_to_end, expected):
    answer = {
        name: None if value is None else {"p50_ms": value, "mean_ms": 50}
        for name, value in (("device", device), ("wall", wall), ("end_to_end", end_to_end))
    }
    assert engine.median_of(answer, mode) == expected


def test_the_judged_mode_is_the_leanest(near, tmp_path):
    with near.open() as place:
        assert engine.modes(place) == ["graph", "device", "end_to_end"]
    with Near(lambda: Worker("onnxruntime"), tmp_path / "cpu").open() as place:
        assert engine.modes(place) == ["device", "end_to_end"]


def test_a_profile_is_of_the_engines_layers(near, taken):
    with near.open() as place:
        engine.take(place, taken, "main")
        found = engine.profile(place, "main", images(1)[0])
    assert [(layer["name"], layer["ms"], layer["onnx"]) for layer in found["layers"]] == [
        ("c0", 2.0, ["c0"]), ("c1", 2.0, ["c1"]), ("out", 2.0, ["out"]),
    ]  # fmt: skip
    assert found["total_ms"] == 6.0
