"""Several inferences in flight, and copies of one direction: on the played driver, and for real."""

import json

import numpy as np
import onnx
import onnx_graphs
import pytest
from played_tensorrt import GENERATIONS, LAUNCH_MS, REPLAY_MS

from kdcompile.remote.agent.worker import Worker


@pytest.fixture
def engine(board, order, tmp_path):
    """`engine(version)` -> (ask, scene), with an engine loaded as `main` and inputs in i.npz."""

    def make(version="10.3.0", **load):
        ask, scene = board(version)
        assert "ok" in ask("build", **order())
        assert "ok" in ask("load", path=str(tmp_path / "e.plan"), **load)
        np.savez(tmp_path / "i.npz", image=np.ones((1, 3, 8, 8), np.float32))
        return ask, scene

    return make


@pytest.mark.parametrize("version", GENERATIONS)
@pytest.mark.parametrize(("mode", "ms"), [("device", LAUNCH_MS), ("graph", REPLAY_MS)])
def test_each_stream_has_a_context_and_buffers_of_its_own(engine, tmp_path, version, mode, ms):
    ask, scene = engine(version)
    values = {"inputs": str(tmp_path / "i.npz"), "mode": mode, "iterations": 6, "warmup": 2}
    answer = ask("time", **values, streams=3, samples=True)["ok"]
    assert answer["samples"] == {"device": [ms] * 6}
    assert answer["graph"] == (mode == "graph")
    assert answer["per_second"] > 0
    assert scene.calls.count(("create_execution_context",)) == 3
    kinds = [kind for kind, _ in scene.driver.alive]
    assert (kinds.count("stream"), kinds.count("device"), kinds.count("event")) == (3, 6, 0)
    # three fill the pipeline, six count, three follow; and each has its inputs once
    wanted = 3 + 6 + 3
    scene.driver.log.clear()
    ask("time", **values, streams=3)
    assert scene.driver.log.count("cuEventRecord") == 2 * wanted
    assert scene.driver.log.count("cuMemcpyHtoDAsync_v2") == 3
    assert scene.calls.count(("create_execution_context",)) == 3
    assert "per_second" not in ask("time", **values)["ok"]


@pytest.mark.parametrize(("mode", "into", "out"),
                         [("copy_in", 1, 0), ("copy_out", 0, 1), ("end_to_end", 1, 1)])  # fmt: skip
@pytest.mark.parametrize("streams", [1, 2])
def test_copies_are_those_of_the_mode(engine, tmp_path, mode, into, out, streams):
    ask, scene = engine()
    values = {"inputs": str(tmp_path / "i.npz"), "mode": mode, "streams": streams}
    ask("time", **values, iterations=1)  # makes the buffers
    scene.driver.log.clear()
    answer = ask("time", **values, iterations=5, warmup=2, samples=True)["ok"]
    clock = "end_to_end" if streams == 1 else "device"
    assert [len(times) for times in answer["samples"].values()] == [5]
    assert list(answer["samples"]) == [clock]
    count = 7 if streams == 1 else 2 + 5 + 2
    log = scene.driver.log
    assert log.count("cuMemcpyHtoDAsync_v2") == streams + into * count
    assert log.count("cuMemcpyDtoHAsync_v2") == out * count


@pytest.mark.parametrize("end", ["unload", "quit", "profile"])
def test_streams_are_given_back(engine, tmp_path, end):
    ask, scene = engine(graph=True)
    inputs = str(tmp_path / "i.npz")
    assert "ok" in ask("time", inputs=inputs, mode="graph", streams=4)
    values = {"unload": {"name": "main"}, "profile": {"inputs": inputs}}
    assert "ok" in ask(end, **values.get(end, {}))
    left = [kind for kind, _ in scene.driver.alive]
    assert left == ([] if end == "quit" else ["stream"])


@pytest.mark.parametrize("function", ["cuStreamCreate", "cuEventSynchronize", "cuMemAlloc_v2",
                                      "cuMemcpyHtoDAsync_v2", "cuEventCreate"])  # fmt: skip
@pytest.mark.parametrize("after", [0, 1, 3])
def test_nothing_is_lost_when_it_fails(engine, tmp_path, function, after):
    ask, scene = engine()
    scene.driver.broken[function] = after
    inputs = str(tmp_path / "i.npz")
    first = ask("time", inputs=inputs, mode="end_to_end", streams=3)
    assert "ok" in first or first["error"]["code"] == "cuda-error"
    scene.driver.broken.clear()
    assert "ok" in ask("time", inputs=inputs, streams=3)
    assert "ok" in ask("quit")
    assert scene.driver.alive == []


def test_an_engine_with_room_for_one_context(engine, tmp_path, monkeypatch):
    ask, scene = engine("8.6.1")
    made = []
    import tensorrt

    real = tensorrt.ICudaEngine.create_execution_context

    def one(engine):
        made.append(1)
        return real(engine) if len(made) == 1 else None

    monkeypatch.setattr(tensorrt.ICudaEngine, "create_execution_context", one)
    made.append(1)  # that of `load`
    error = ask("time", inputs=str(tmp_path / "i.npz"), streams=2)["error"]
    assert error["code"] == "streams-refused"
    assert "fixed shape" in error["fix"]
    assert "ok" in ask("time", inputs=str(tmp_path / "i.npz"))
    assert [k for k, _ in scene.driver.alive].count("stream") == 1


@pytest.mark.parametrize(("streams", "mode"), [(0, "device"), (33, "device"), (2, "enqueue")])
def test_what_cannot_be_in_flight(engine, tmp_path, streams, mode):
    ask, _ = engine()
    error = ask("time", inputs=str(tmp_path / "i.npz"), streams=streams, mode=mode)["error"]
    assert error["code"] == "mode-refused"
    assert "1 to 32" in error["message"]


@pytest.fixture
def cpu(tmp_path):
    """`ask(op, ...)` of a worker of ONNX Runtime, with a network loaded and inputs in i.npz."""
    served = Worker("onnxruntime")

    def ask(op, **values):
        return json.loads(json.dumps(served.answer({"id": 1, "op": op, **values})))

    path = tmp_path / "net.onnx"
    onnx.save(onnx_graphs.chain(2), path)
    np.savez(tmp_path / "i.npz", image=np.ones((1, 3, 16, 16), np.float32))
    for op, values in (("build", {"onnx": str(path), "engine": str(tmp_path / "e"),
                                  "precision": "fp32"}),
                       ("load", {"path": str(tmp_path / "e"), "threads": 1})):  # fmt: skip
        assert "ok" in ask(op, **values)
    return ask, served


@pytest.mark.parametrize("mode", ["device", "end_to_end", "copy_in", "copy_out"])
@pytest.mark.parametrize("streams", [1, 3])
def test_onnx_runtime_has_sessions_in_threads(cpu, tmp_path, mode, streams):
    ask, served = cpu
    values = {"inputs": str(tmp_path / "i.npz"), "mode": mode, "streams": streams}
    answer = ask("time", **values, iterations=7, warmup=1, samples=True)["ok"]
    clock = "wall" if mode == "device" else "end_to_end"
    assert len(answer["samples"][clock]) == 7
    assert min(answer["samples"][clock]) > 0
    assert len(served.loaded["main"].beside) == streams - 1
    assert ("per_second" in answer) == (streams > 1)
    assert "ok" in ask("unload", name="main")


def test_a_thread_that_fails_is_told(cpu, tmp_path):
    ask, served = cpu
    network = served.loaded["main"]

    def broken(session, feeds, mode):
        def go():
            raise RuntimeError("out of memory")

        return go

    network._once = broken
    error = ask("time", inputs=str(tmp_path / "i.npz"), streams=2)["error"]
    assert "out of memory" in error["message"]
