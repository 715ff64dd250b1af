"""The worker's decisions against the attribute surface of each TensorRT generation.

Memory is real, the GPU is played (see conftest.py).
"""

import json
import sys
import types

import numpy as np
import pytest

from kdcompile.backends import worker


@pytest.fixture
def board(played_tensorrt, tmp_path):
    """`board(version)` -> (ask, calls, module)."""

    def make(version):
        module, calls = played_tensorrt(version)
        (tmp_path / "m.onnx").write_bytes(b"graph")
        served = worker.Worker("tensorrt")
        return (lambda op, **values: served.answer({"id": 1, "op": op, **values})), calls, module

    return make


SHAPES = [[1, 3, 8, 8], [1, 3, 16, 16], [1, 3, 64, 64]]


def order(tmp_path, precision="int8", **more):
    onnx, engine = str(tmp_path / "m.onnx"), str(tmp_path / "e.plan")
    return {"onnx": onnx, "engine": engine, "precision": precision, "profile": SHAPES, **more}


@pytest.mark.parametrize(
    ("version", "precision", "onnx", "flags", "network"),
    [
        ("8.6.1", "fp32", "fp32", [], ["EXPLICIT_BATCH"]),
        ("8.6.1", "fp16", "fp32", ["FP16"], ["EXPLICIT_BATCH"]),
        ("8.6.1", "int8", "int8", ["INT8", "FP16"], ["EXPLICIT_BATCH"]),
        ("10.3.0", "fp16", "fp32", ["FP16"], ["EXPLICIT_BATCH"]),
        ("10.3.0", "int8", "int8", ["INT8", "FP16"], ["EXPLICIT_BATCH"]),
        ("10.13.3", "fp16", "fp16", [], ["EXPLICIT_BATCH", "STRONGLY_TYPED"]),
        ("10.13.3", "int8", "int8", [], ["EXPLICIT_BATCH", "STRONGLY_TYPED"]),
        ("11.4.0", "fp32", "fp32", [], ["STRONGLY_TYPED"]),
        ("11.4.0", "fp16", "fp16", [], ["STRONGLY_TYPED"]),
        ("11.4.0", "int8", "int8", [], ["STRONGLY_TYPED"]),
    ],
)
def test_build(board, tmp_path, version, precision, onnx, flags, network):
    ask, calls, module = board(version)
    plan = ask("hello")["ok"]["precisions"][precision]
    assert plan == {"onnx": onnx, "flags": flags, "network": network}
    built = ask("build", **order(tmp_path, precision, workspace_mb=512))["ok"]
    kinds = module.NetworkDefinitionCreationFlag
    assert ("create_network", sum(1 << getattr(kinds, n) for n in network)) in calls
    assert [c[1] for c in calls if c[0] == "set_flag"] == [
        getattr(module.BuilderFlag, f) for f in flags
    ]
    assert ("set_memory_pool_limit", "workspace", 512 << 20) in calls
    assert ("set_shape", "image", *map(tuple, SHAPES)) in calls
    sources = [c[1] for c in calls if c[0] == "set_tactic_sources"]
    assert sources == ([0b11000] if version == "8.6.1" else [])
    assert built["bytes"] == len(b"an engine")
    assert (tmp_path / "e.plan").read_bytes() == b"an engine"


@pytest.mark.parametrize(
    ("old", "state"),
    [
        (None, "new"),
        (b"timings", "reused"),
        (b"of another GPU", "replaced"),
        (b"damaged", "replaced"),
    ],
)
def test_timing_cache(board, tmp_path, old, state):
    ask, _, _ = board("8.6.1")
    cache = tmp_path / "timing.cache"
    if old is not None:
        cache.write_bytes(old)
    built = ask("build", **order(tmp_path, timing_cache=str(cache)))["ok"]
    assert built["timing_cache"] == state
    assert cache.read_bytes() == b"timings"


@pytest.mark.parametrize(("version", "node"), [("8.6.1", "node 3"), ("10.3.0", "Mystery strange")])
def test_refused_onnx_names_the_node(board, tmp_path, version, node):
    ask, _, _ = board(version)
    (tmp_path / "m.onnx").write_bytes(b"unsupported")
    error = ask("build", **order(tmp_path))["error"]
    assert error["code"] == "onnx-refused"
    assert node in error["message"]
    assert "no importer for Mystery" in error["message"]


def test_dynamic_without_profile(board, tmp_path):
    ask, _, _ = board("10.3.0")
    error = ask("build", **order(tmp_path) | {"profile": None})["error"]
    assert error["code"] == "profile-missing"


def test_failed_build_gives_the_log(board, tmp_path):
    ask, _, module = board("10.3.0")
    module.image.name = "unbuildable"
    error = ask("build", **order(tmp_path))["error"]
    assert (error["code"], error["message"]) == ("build-failed", "no implementation for node 12")


def test_run_and_time(board, tmp_path):
    ask, _, _ = board("8.6.1")
    ask("build", **order(tmp_path))
    assert ask("load", path=str(tmp_path / "e.plan")) == {"id": 1, "ok": {"name": "main"}}
    for side in (8, 16, 8):  # the buffers are remade when the shape changes
        image = np.random.default_rng(side).standard_normal((1, 3, side, side)).astype(np.float32)
        np.savez(tmp_path / "i.npz", image=image)
        ask("run", inputs=str(tmp_path / "i.npz"), outputs=str(tmp_path / "o.npz"))
        with np.load(tmp_path / "o.npz") as found:
            np.testing.assert_array_equal(found["density"], image * 2)
    times = ask("time", inputs=str(tmp_path / "i.npz"), iterations=5, warmup=2)["ok"]
    assert times["device"] == {
        "p50_ms": 2, "p90_ms": 2, "p99_ms": 2, "mean_ms": 2, "min_ms": 2, "n": 5
    }  # fmt: skip
    assert times["wall"]["n"] == 5


def test_freed_when_replaced_and_at_quit(board, tmp_path):
    ask, _, _ = board("8.6.1")
    ask("build", **order(tmp_path))
    np.savez(tmp_path / "i.npz", image=np.zeros((1, 3, 8, 8), np.float32))
    for op in ("load", "quit"):
        ask("load", path=str(tmp_path / "e.plan"))
        ask("run", inputs=str(tmp_path / "i.npz"), outputs=str(tmp_path / "o.npz"))
        assert (
            ask(op, **({"path": str(tmp_path / "e.plan")} if op == "load" else {}))["ok"]
            is not None
        )
    cuda = ask.__closure__[0].cell_contents.backend.cuda
    assert sorted(cuda.freed) == sorted(cuda.memory)


def test_shape_outside_the_profile(board, tmp_path):
    ask, _, _ = board("8.6.1")
    ask("build", **order(tmp_path))
    ask("load", path=str(tmp_path / "e.plan"))
    np.savez(tmp_path / "i.npz", image=np.zeros((1, 3, 65, 8), np.float32))
    error = ask("run", inputs=str(tmp_path / "i.npz"), outputs=str(tmp_path / "o.npz"))["error"]
    assert error["code"] == "shape-refused"


@pytest.mark.parametrize("key", ["tensorrt", "compute_capability", "platform"])
def test_engine_of_another_machine(board, tmp_path, key):
    ask, _, _ = board("8.6.1")
    ask("build", **order(tmp_path))
    record = json.loads((tmp_path / "e.plan.json").read_text())
    (tmp_path / "e.plan.json").write_text(json.dumps(record | {key: "9.9"}))
    error = ask("load", path=str(tmp_path / "e.plan"))["error"]
    assert error["code"] == "engine-mismatch"
    assert f"{key}: built 9.9, here" in error["message"]


def test_flipped_byte_and_foreign_file(board, tmp_path):
    ask, _, _ = board("8.6.1")
    ask("build", **order(tmp_path))
    (tmp_path / "e.plan").write_bytes(b"an engina")
    assert ask("load", path=str(tmp_path / "e.plan"))["error"]["code"] == "engine-mismatch"
    (tmp_path / "e.plan.json").unlink()
    error = ask("load", path=str(tmp_path / "e.plan"))["error"]
    assert (error["code"], error["message"]) == ("engine-refused", "magic tag does not match")


def test_old_tensorrt_is_refused(monkeypatch):
    module = types.SimpleNamespace(__version__="8.2.1", IExecutionContext=object)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(worker.WorkerError, match=r"8\.2\.1 is older than 8\.5"):
        worker.Worker("tensorrt")
