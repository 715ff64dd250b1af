"""Loading, running, timing and freeing engines on the played TensorRT and driver."""

import hashlib
import json

import numpy as np
import pytest
from played_tensorrt import GENERATIONS, LAUNCH_MS, REPLAY_MS

CLOCKS = ("device", "wall", "end_to_end")


@pytest.fixture
def loaded(board, order, tmp_path):
    """`loaded(version)` -> (ask, scene) with an engine as `main`."""

    def make(version="10.3.0", **load):
        ask, scene = board(version)
        assert "ok" in ask("build", **order())
        assert "ok" in ask("load", path=str(tmp_path / "e.plan"), **load)
        return ask, scene

    return make


@pytest.fixture
def image(tmp_path):
    """`image(side)` -> (the file of a random image, the image)."""

    def make(side=8, kind=np.float32):
        array = np.random.default_rng(side).standard_normal((1, 3, side, side)).astype(kind)
        np.savez(tmp_path / "i.npz", image=array)
        return str(tmp_path / "i.npz"), array

    return make


@pytest.mark.parametrize("version", GENERATIONS)
def test_load_says_what_it_is(loaded, tmp_path, version):
    ask, _ = loaded(version)
    answer = ask("load", path=str(tmp_path / "e.plan"), name="again")["ok"]
    assert answer == {
        "name": "again", "device_memory_mb": 5.0,
        "inputs": {"image": {"dtype": "float32", "shape": [1, 3, -1, -1]}},
        "outputs": {"density": {"dtype": "float32", "shape": [1, 3, -1, -1]}},
    }  # fmt: skip


@pytest.mark.parametrize("version", GENERATIONS)
@pytest.mark.parametrize("graph", [False, True])
def test_run_at_changing_shapes(loaded, image, tmp_path, version, graph):
    ask, scene = loaded(version, graph=graph)
    for side in (8, 16, 16, 8):
        inputs, array = image(side)
        ask("run", inputs=inputs, outputs=str(tmp_path / "o.npz"))
        with np.load(tmp_path / "o.npz") as found:
            np.testing.assert_array_equal(found["density"], array * 2)
    log = scene.driver.log
    assert log.count("cuMemAlloc_v2") == 2 * 3  # the two of equal size share their buffers
    assert log.count("cuGraphInstantiateWithFlags") == (3 if graph else 0)
    assert log.count("cuGraphLaunch") == (4 if graph else 0)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("device", {"device": LAUNCH_MS, "wall": None}),
        ("graph", {"device": REPLAY_MS, "wall": None}),
        ("end_to_end", {"end_to_end": None}),
        ("enqueue", {"device": LAUNCH_MS}),
    ],
)
def test_modes(loaded, image, mode, expected):
    ask, scene = loaded()
    inputs, _ = image()
    ask("time", inputs=inputs, iterations=1, warmup=0, mode=mode)  # makes buffers and graph
    scene.driver.log.clear()
    answer = ask("time", inputs=inputs, iterations=5, warmup=2, mode=mode, samples=True)["ok"]
    assert (answer["mode"], answer["graph"]) == (mode, mode == "graph")
    assert set(answer["samples"]) == set(expected)
    assert [clock for clock in CLOCKS if answer[clock]] == list(expected)
    for clock, ms in expected.items():
        assert answer[clock]["n"] == len(answer["samples"][clock]) == 5
        assert 0 < answer[clock]["p50_ms"] <= answer[clock]["p99_ms"]
        if ms is not None:
            assert answer[clock]["p50_ms"] == pytest.approx(ms)
    log = scene.driver.log
    assert not [call for call in log if "Alloc" in call or "Capture" in call]
    transfers = 1 + (7 if mode == "end_to_end" else 0)
    assert log.count("cuMemcpyHtoDAsync_v2") == transfers
    assert log.count("cuMemcpyDtoHAsync_v2") == transfers - 1
    waits = {"enqueue": 1, "device": 7, "graph": 7, "end_to_end": 7}[mode]
    assert log.count("cuStreamSynchronize") == 1 + waits


def test_a_loaded_graph_serves_all_modes_but_device(loaded, image):
    ask, _ = loaded(graph=True)
    inputs, _ = image()
    graphs = {m: ask("time", inputs=inputs, mode=m)["ok"]["graph"]
              for m in ("device", "graph", "end_to_end", "enqueue")}  # fmt: skip
    assert graphs == {"device": False, "graph": True, "end_to_end": True, "enqueue": True}


def test_capture_that_is_refused_is_an_error_of_graph_only(loaded, image, tmp_path):
    ask, scene = loaded()
    scene.takes_capture = False
    inputs, _ = image()
    assert "ok" in ask("time", inputs=inputs)
    error = ask("time", inputs=inputs, mode="graph")["error"]
    assert error["code"] == "graph-refused"
    assert "device" in error["fix"]
    assert "ok" in ask("run", inputs=inputs, outputs=str(tmp_path / "o.npz"))  # not left capturing


def test_unknown_mode(loaded, image):
    ask, _ = loaded()
    error = ask("time", inputs=image()[0], mode="fast")["error"]
    assert error["code"] == "mode-refused"
    assert "end_to_end" in error["message"]


@pytest.mark.parametrize("version", GENERATIONS)
def test_profile(loaded, image, version):
    ask, scene = loaded(version, graph=True)
    inputs, _ = image()
    ask("time", inputs=inputs, mode="graph")
    answer = ask("profile", inputs=inputs, iterations=4)["ok"]
    assert [(x["name"], x["ms"], x["precision"]) for x in answer["layers"]] == [
        ("head", 1.5, "int8"), ("PWN(first + density)", 0.5, "fp16")
    ]  # fmt: skip
    assert answer["total_ms"] == 2.0
    if version != "8.5.3":
        assert [x["onnx"] for x in answer["layers"]] == [["head"], ["first", "density"]]
    timed = ask("time", inputs=inputs, iterations=3, mode="graph")["ok"]
    assert timed["device"]["p50_ms"] == REPLAY_MS  # captured anew, with no profiler in it
    assert scene.calls.count(("create_execution_context",)) == 2


@pytest.mark.parametrize("end", ["unload", "quit", "load"])
def test_freed(loaded, image, tmp_path, end):
    ask, scene = loaded(graph=True)
    inputs, _ = image()
    for mode in ("device", "graph", "end_to_end", "enqueue"):
        ask("time", inputs=inputs, mode=mode, iterations=2)
    values = {"unload": {"name": "main"}, "load": {"path": str(tmp_path / "e.plan")}}
    assert "ok" in ask(end, **values.get(end, {}))
    kinds = {kind for kind, _ in scene.driver.alive}
    assert kinds == ({"stream"} if end != "quit" else set())


CAN_FAIL = ["cuMemAlloc_v2", "cuMemAllocHost_v2", "cuMemcpyHtoDAsync_v2", "cuEventCreate",
            "cuEventRecord", "cuEventElapsedTime", "cuStreamSynchronize", "cuGraphLaunch",
            "cuGraphInstantiateWithFlags", "cuStreamEndCapture", "cuStreamBeginCapture_v2",
            "cuMemcpyDtoHAsync_v2"]  # fmt: skip


@pytest.mark.parametrize("function", CAN_FAIL)
@pytest.mark.parametrize("after", [0, 1])
def test_freed_on_error(loaded, image, function, after):
    ask, scene = loaded()
    scene.driver.broken[function] = after
    failed = [
        ask("time", inputs=image(side)[0], mode=mode, iterations=3)
        for side in (8, 16)
        for mode in ("graph", "enqueue", "end_to_end")
    ]
    codes = {answer["error"]["code"] for answer in failed if "error" in answer}
    assert codes
    assert codes <= {"cuda-error", "graph-refused"}
    scene.driver.broken.clear()
    assert "ok" in ask("time", inputs=image()[0], mode="graph")
    assert "ok" in ask("unload", name="main")
    assert {kind for kind, _ in scene.driver.alive} == {"stream"}
    assert "ok" in ask("quit")
    assert scene.driver.alive == []


def test_out_of_memory_is_named(loaded, image):
    ask, scene = loaded()
    scene.driver.broken["cuMemAlloc_v2"] = 0
    error = ask("time", inputs=image()[0])["error"]
    assert error["message"] == "cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY (2)"
    assert "memory" in error["fix"]


@pytest.mark.parametrize("version", GENERATIONS)
def test_shape_outside_the_profile(loaded, image, version):
    ask, _ = loaded(version)
    error = ask("time", inputs=image(65)[0])["error"]
    assert error["code"] == "shape-refused"
    for shape in ("(1, 3, 65, 65)", "(1, 3, 8, 8)", "(1, 3, 64, 64)"):
        assert shape in error["message"]
    assert "ok" in ask("time", inputs=image(16)[0])


def test_inputs_that_do_not_fit(loaded, image, tmp_path):
    ask, _ = loaded()
    error = ask("time", inputs=image(kind=np.complex64)[0])["error"]
    assert (error["code"], "complex64" in error["message"]) == ("input-refused", True)
    np.savez(tmp_path / "other.npz", picture=np.zeros(1))
    error = ask("time", inputs=str(tmp_path / "other.npz"))["error"]
    assert error["code"] == "input-missing"
    assert "picture" in error["message"]
    assert ask("time", inputs=image()[0], name="absent")["error"]["code"] == "not-loaded"
    assert ask("unload", name="absent")["error"]["code"] == "not-loaded"


def test_engine_with_a_type_that_numpy_lacks(board, order, tmp_path):
    ask, scene = board("10.3.0")
    scene.types["density"] = "BF16"
    ask("build", **order())
    error = ask("load", path=str(tmp_path / "e.plan"))["error"]
    assert (error["code"], "BF16" in error["message"]) == ("engine-refused", True)


def change(tmp_path, **values):
    side = tmp_path / "e.plan.json"
    side.write_text(json.dumps({**json.loads(side.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tensorrt": "8.6.1"}, ["built by tensorrt 8.6.1", "here tensorrt 10.3.0"]),
        ({"tensorrt": "10.3.1"}, ["built by tensorrt 10.3.1"]),
        ({"compute_capability": "9.0"}, ["for sm_90", "for sm_87"]),
        ({"platform": "linux abacus"}, ["on linux abacus"]),
        ({"tensorrt": "10.3.0.26"}, None),  # the build number is not part of it
    ],
)
def test_engine_of_another_machine(board, order, tmp_path, values, words):
    ask, _ = board("10.3.0")
    ask("build", **order())
    change(tmp_path, **values)
    answer = ask("load", path=str(tmp_path / "e.plan"))
    if words is None:
        assert "ok" in answer
        return
    assert answer["error"]["code"] == "engine-mismatch"
    assert all(word in answer["error"]["message"] for word in words)
    assert "build_engine.py" in answer["error"]["fix"]


def test_damage_is_found_before_tensorrt_sees_it(board, order, tmp_path):
    ask, scene = board("10.3.0")
    ask("build", **order())
    whole = (tmp_path / "e.plan").read_bytes()
    scene.calls.clear()
    flipped = bytes([*whole[:-1], whole[-1] ^ 1])
    for blob, word in ((whole[:20], f"20 of {len(whole)} bytes"), (flipped, "SHA-256"), (b"", "0")):
        (tmp_path / "e.plan").write_bytes(blob)
        error = ask("load", path=str(tmp_path / "e.plan"))["error"]
        assert error["code"] == "engine-damaged"
        assert word in error["message"]
    assert scene.calls == []


@pytest.mark.parametrize("side", [None, "", "[]", "{}", '{"sha256": "0"}', "\xff"])
def test_engine_without_a_record(board, order, tmp_path, side):
    ask, scene = board("10.3.0")
    ask("build", **order())
    (tmp_path / "e.plan.json").unlink()
    if side is not None:
        (tmp_path / "e.plan.json").write_bytes(side.encode("latin-1"))
    scene.calls.clear()
    error = ask("load", path=str(tmp_path / "e.plan"))["error"]
    assert error["code"] == "engine-unknown"
    assert "e.plan" in error["message"]
    assert scene.calls == []


def test_expected_values_stand_in_for_the_record(board, order, tmp_path):
    ask, _ = board("10.3.0")
    built = ask("build", **order())["ok"]
    (tmp_path / "e.plan.json").unlink()
    names = ("sha256", "tensorrt", "compute_capability", "platform")
    expected = {name: built[name] for name in names}
    path = str(tmp_path / "e.plan")
    assert "ok" in ask("load", path=path, expected=expected)
    for name in names:
        wrong = ask("load", path=path, expected={**expected, name: "9.9"})["error"]["code"]
        assert wrong == ("engine-damaged" if name == "sha256" else "engine-mismatch")
        partly = {k: v for k, v in expected.items() if k != name}
        assert ask("load", path=path, expected=partly)["error"]["code"] == "engine-unknown"


@pytest.mark.parametrize(
    ("version", "blob", "code"),
    [
        ("10.3.0", b"an image", "engine-damaged"),
        ("10.3.0", b"ftrt".ljust(24, b"\0") + bytes([8, 6, 1, 0]), "engine-mismatch"),
        ("10.3.0", b"ftrt".ljust(24, b"\0") + bytes([10, 3, 0, 0]), "engine-refused"),
        ("8.5.3", b"an image", "engine-refused"),  # whose plans say no version
    ],
)
def test_record_that_vouches_for_what_is_no_engine(board, order, tmp_path, version, blob, code):
    ask, _ = board(version)
    ask("build", **order())
    (tmp_path / "e.plan").write_bytes(blob)
    change(tmp_path, sha256=hashlib.sha256(blob).hexdigest(), bytes=len(blob))
    error = ask("load", path=str(tmp_path / "e.plan"))["error"]
    assert error["code"] == code
    if code == "engine-refused":
        assert error["message"] == "magic tag does not match"


def test_the_network_that_was_loaded_stays_when_a_load_fails(loaded, image, tmp_path):
    ask, _ = loaded()
    (tmp_path / "e.plan").write_bytes(b"")
    assert "error" in ask("load", path=str(tmp_path / "e.plan"))
    assert "ok" in ask("time", inputs=image()[0])
